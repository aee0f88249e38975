//! QEMU itself has what [`abi`](src/abi.rs) declares: the linker must not look for it.

fn main() {
    println!("cargo::rustc-link-arg=-Wl,--unresolved-symbols=ignore-all");
    println!("cargo::rerun-if-changed=build.rs");
}
