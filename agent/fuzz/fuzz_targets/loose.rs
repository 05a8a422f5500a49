//! Fuzzes the parser of files that the catalogue does not have; what must hold is in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::loose(text));
