//! Hands the linker script to the linker when the image's own target is built.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    let target_os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if target_os == "none" {
        println!("cargo:rustc-link-arg=-T{folder}/link.ld");
        println!("cargo:rustc-link-arg=-zmax-page-size=0x1000");
    }
}
