//! Fuzzes the parser of oom_score and oom_score_adj; what must hold is in `proc_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::score(text));
