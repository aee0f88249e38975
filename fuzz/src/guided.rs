//! libFuzzer on the target that `NEXIT_FUZZ_TARGET` names. `nexit-fuzz guided` starts it.

#![no_main]

use std::sync::LazyLock;

use nexit_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("NEXIT_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("NEXIT_FUZZ_TARGET={name} names no target"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));
