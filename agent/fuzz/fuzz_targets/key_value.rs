//! Fuzzes the parser of lines of `key value`; what must hold is in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::key_value(text));
