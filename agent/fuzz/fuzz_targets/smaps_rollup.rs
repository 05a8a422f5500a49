//! Fuzzes the parser of smaps_rollup; what must hold is in `proc_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::smaps_rollup(text));
