//! Fuzzes the parser of cpu.max; what must hold is in `checks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::pair(text));
