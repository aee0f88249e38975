//! Every kind of instruction with an operand in memory, where nothing is: it must do what it does in a page of RAM that
//! is full of ones, which is what a bus reads that nobody answers. The page of RAM needs no hypervisor, so that the
//! reference is the bare CPU's.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod instructions;
mod trial;

use core::cell::UnsafeCell;

use payload::{power_off, say, verdict};
use trial::{Seen, at_cpl_0, extended};

/// Where no PC has anything.
const NOWHERE: u64 = 0xfed9_0000;
const IO_APIC: u64 = 0xfec0_0000;
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Ones(UnsafeCell<[u8; 2 * PAGE]>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Ones {}
static ONES: Ones = Ones(UnsafeCell::new([0xff; 2 * PAGE]));

fn ones() -> u64 {
    let at = ONES.0.get();
    // SAFETY: nobody holds a reference.
    unsafe { at.cast::<u8>().write_bytes(0xff, 2 * PAGE) };
    at as u64
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    trial::prepare();
    let vectors = extended();
    say!("begins, {}", if vectors { "with AVX" } else { "without AVX" });
    compare(vectors, 0x100, "every instruction does where nothing is what it does with ones");
    compare(vectors, PAGE as u64 - 3, "and so it does across two pages");
    registers();
    power_off()
}

fn compare(vectors: bool, offset: u64, claim: &str) {
    let (mut tried, mut different) = (0, 0);
    for (name, code) in instructions::all(vectors) {
        let reference = at_cpl_0(code, ones(), offset);
        let seen = at_cpl_0(code, NOWHERE, offset);
        tried += 1;
        if seen != reference {
            different += 1;
            say!("{name} differs at {offset:#x}: {seen:x?} and not {reference:x?}");
        }
    }
    // Which may differ, the test knows.
    verdict(claim, tried > 1200, format_args!("{tried} tried, {different} differ"));
}

/// A device's registers, by instructions that only the CPU knows.
fn registers() {
    const VERSION: u64 = 1;
    // push 1; pop [rbx]
    let write = at_cpl_0(&[0x6a, VERSION as u8, 0x8f, 0x03], IO_APIC, 0);
    // push [rbx]; pop rax
    let index = at_cpl_0(&[0xff, 0x33, 0x58], IO_APIC, 0);
    let data = at_cpl_0(&[0x0f, 0x16, 0x03, 0x66, 0x0f, 0x70, 0xc0, 0xee], IO_APIC, 0x10);
    let faults = [write.vector, index.vector, data.vector];
    let none = faults.iter().all(|vector| *vector == Seen::NONE);
    let right =
        index.gpr[0] as u32 == VERSION as u32 && data.vector_register[0] as u32 & 0xff >= 0x11;
    verdict(
        "a register is written and read by any instruction",
        none && right,
        format_args!("{:#x}, {:#x}, {faults:?}", index.gpr[0], data.vector_register[0]),
    );
}
