//! A guest that shares memory with another that runs the same program. They write patterns for each
//! other and ring: peer 0 first, peer 1 back. Peer 1 does it in two generations.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

use core::sync::atomic::{AtomicU64, Ordering};

use arch::Hpa;
use arch::machine::Width;
use arch::msr;
use cpu::instructions::{port_write, tsc, write_msr};
use cpu::physical::{mmio_read, mmio_write, pointer};
use payload::pci::{bar, config_read, config_write};
use payload::{Counter, exits, exits_during, loaded, power_off, say, verdict};
use x86_64::instructions::interrupts;
use x86_64::structures::idt::{InterruptDescriptorTable, InterruptStackFrame};

const IVSHMEM: u32 = 0x1110_1af4;
const ROUNDS: u64 = 1000;
const GENERATIONS: u64 = 2;
const VECTOR: u8 = 0x51;
/// Of an `INT n`.
const SOFTWARE: u8 = 0x80;
/// Which of its doorbells a guest listens to.
const INDEX: u64 = 3;
/// Words of a pattern.
const WORDS: u64 = 64;

static HEARD: AtomicU64 = AtomicU64::new(0);
/// Alone in its page: what shares one with the IDT exits when it is written.
#[repr(align(4096))]
struct Table(InterruptDescriptorTable);
static mut TABLE: Table = Table(InterruptDescriptorTable::new());

extern "x86-interrupt" fn doorbell(_: InterruptStackFrame) {
    HEARD.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
}

extern "x86-interrupt" fn nothing(_: InterruptStackFrame) {}

/// The function, and which peer this guest is.
struct Shared {
    registers: u64,
    memory: u64,
    peer: u64,
    /// It does not sleep while it listens: Bochs does not wake a CPU that halts with a virtual interrupt
    /// pending, as the manual says that it does.
    awake: bool,
}

impl Shared {
    /// Finds the function and has its doorbell raise [`VECTOR`] here.
    fn find(awake: bool) -> Option<Self> {
        let device = (0..32).find(|device| config_read(*device, 0) == IVSHMEM)?;
        say!("function 00:{device:02x}.0, class and revision {:#x}", config_read(device, 8));
        let (registers, memory) = (bar(device, 0), bar(device, 2));
        let entry = bar(device, 1) + 16 * INDEX;
        for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, u64::from(VECTOR)), (12, 0)] {
            // SAFETY: an entry of the function's MSI-X table.
            unsafe { mmio_write(Hpa::new(entry + offset), Width::Dword, value) };
        }
        config_write(device, 4, 0x6);
        config_write(device, 0x40, 0x8000_0000);
        // SAFETY: the function's register IVPosition.
        let peer = unsafe { mmio_read(Hpa::new(registers + 8), Width::Dword) };
        Some(Self { registers, memory, peer, awake })
    }

    /// A word of the shared memory.
    fn word(&self, index: u64) -> &AtomicU64 {
        // SAFETY: aligned, inside BAR 2, and all access to it is atomic.
        unsafe { &*pointer::<AtomicU64>(Hpa::new(self.memory + 8 * index)) }
    }

    /// How often `peer` has been ready.
    fn ready(&self, peer: u64) -> &AtomicU64 {
        self.word(peer)
    }

    fn pattern(&self, writer: u64, round: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let value =
            move |i: u64| (round << 32 | writer << 16 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..WORDS).map(move |i| (self.word(512 * (1 + writer) + i), value(i)))
    }

    /// Writes a pattern and rings.
    fn call(&self, round: u64) {
        for (word, value) in self.pattern(self.peer, round) {
            word.store(value, Ordering::Relaxed);
        }
        let value = (1 - self.peer) << 16 | INDEX;
        // SAFETY: the function's register Doorbell.
        unsafe { mmio_write(Hpa::new(self.registers + 12), Width::Dword, value) };
    }

    /// Waits until the other has rung; whether its pattern is there.
    fn hear(&self, round: u64) -> bool {
        interrupts::disable();
        while HEARD.load(Ordering::Relaxed) < round {
            if self.awake {
                interrupts::enable();
                core::hint::spin_loop();
            } else {
                interrupts::enable_and_hlt();
            }
            interrupts::disable();
        }
        self.pattern(1 - self.peer, round)
            .all(|(word, value)| word.load(Ordering::Relaxed) == value)
    }

    fn rounds(&self, generation: u64) {
        let first = HEARD.load(Ordering::Relaxed) + 1;
        let mut right = 0;
        let spent = exits_during(|| {
            for round in first..first + ROUNDS {
                if self.peer == 0 {
                    self.call(round);
                }
                right += u64::from(self.hear(round));
                if self.peer == 1 {
                    self.call(round);
                }
            }
        });
        verdict(
            "each ring is heard once, and the other's pattern is there",
            right == ROUNDS && HEARD.load(Ordering::Relaxed) == first + ROUNDS - 1,
            format_args!("{right} of {ROUNDS} in generation {generation}"),
        );
        say!("exits for {ROUNDS} rounds, generation {generation}: {spent}");
        for (name, counter) in [
            ("external_interrupt", Counter::ExternalInterrupt),
            ("eoi", Counter::Eoi),
            ("shadow_gate", Counter::ShadowGate),
        ] {
            say!("exits by {name}, generation {generation}: {}", exits(counter));
        }
    }
}

/// Waits a while, without an exit.
fn wait_until(mut reached: impl FnMut() -> bool) -> bool {
    const MAX_TICKS: u64 = 400_000_000_000;
    let start = tsc();
    while !reached() {
        if tsc() - start > MAX_TICKS {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    let table = &raw mut TABLE;
    // SAFETY: one CPU, before the table is loaded.
    let Table(idt) = unsafe { &mut *table };
    idt[VECTOR].set_handler_fn(doorbell);
    idt[SOFTWARE].set_handler_fn(nothing);
    idt.load();
    // The first event beyond the exceptions has the shadow put in place; what is counted comes later.
    // SAFETY: its handler does nothing.
    unsafe { core::arch::asm!("int {}", const SOFTWARE) };
    const SOFTWARE_ENABLE: u64 = 1 << 8;
    // SAFETY: the guest's own local APIC.
    unsafe { write_msr(msr::IA32_X2APIC_SIVR, SOFTWARE_ENABLE | 0xff) };
    // SAFETY: they are what this function was called with.
    let loaded = unsafe { loaded(magic, info) };
    let awake = loaded.is_some_and(|loaded| loaded.command_line.contains("awake"));
    let Some(shared) = Shared::find(awake) else {
        say!("FAILED: no shared memory");
        power_off()
    };
    let (own, other) = (shared.ready(shared.peer), shared.ready(1 - shared.peer));
    let generation = own.fetch_add(1, Ordering::AcqRel) + 1;
    if shared.peer == 1 {
        verdict(
            "the memory outlives this guest",
            generation <= GENERATIONS,
            format_args!("generation {generation}"),
        );
        // Peer 0 counts on; a generation of this one begins at 0.
        HEARD.store((generation - 1) * ROUNDS, Ordering::Relaxed);
        let awake = wait_until(|| other.load(Ordering::Acquire) > 0);
        verdict("the other guest is there", awake, format_args!("generation {generation}"));
        shared.rounds(generation);
        if generation < GENERATIONS {
            // SAFETY: the guest's own reset register.
            unsafe { port_write(0xcf9, Width::Byte, 6) };
        }
    } else {
        for generation in 1..=GENERATIONS {
            let awake = wait_until(|| other.load(Ordering::Acquire) >= generation);
            verdict("the other guest is there", awake, format_args!("generation {generation}"));
            shared.rounds(generation);
        }
    }
    say!("done");
    power_off()
}
