#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| plexum_openai_fuzz::fuzz_rewrite(data));
