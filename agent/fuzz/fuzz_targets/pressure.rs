//! Fuzzes the parser of PSI; what must hold is in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::pressure(text));
