//! Fuzzes the parser of one number; what must hold is in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::single(text));
