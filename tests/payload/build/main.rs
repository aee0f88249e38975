//! Links the payloads as the image is linked, by the same script, and writes the list of `every`.

mod instructions;

use std::path::Path;

fn main() {
    let out = std::env::var_os("OUT_DIR").unwrap_or_default();
    let list = Path::new(&out).join("instructions.rs");
    let written = std::fs::write(&list, instructions::list());
    assert!(written.is_ok(), "cannot write {}: {written:?}", list.display());
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=../../kernel/link.ld");
    let target_os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if target_os == "none" {
        println!("cargo:rustc-link-arg=-T{folder}/../../kernel/link.ld");
        println!("cargo:rustc-link-arg=-zmax-page-size=0x1000");
    }
}
