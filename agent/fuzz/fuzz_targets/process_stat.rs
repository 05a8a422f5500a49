//! Fuzzes the parser of /proc/PID/stat; what must hold is in `proc_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| fgm_fuzz::process_stat(text));
