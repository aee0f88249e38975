//! Attempts on CPUs: of others through the ICR, and of the guest's own second one, which is interrupted,
//! reset and restarted at the worst moments, and changes instructions while they are carried out.

use core::arch::asm;
use core::sync::atomic::Ordering;

use arch::Hpa;
use arch::machine::Width;
use arch::msr;
use cpu::instructions::{port_write, write_msr};
use payload::{say, verdict};
use x86_64::instructions::interrupts;

use crate::cpu_state::wrmsr;
use crate::trap::{EXPECTED, NMIS, NONE, OWN, STRAY, TIMER};

const FIXED: u64 = 0;
const LOWEST: u64 = 1 << 8;
const SMI: u64 = 2 << 8;
const NMI: u64 = 4 << 8;
const INIT: u64 = 5 << 8 | 1 << 14;
const STARTUP: u64 = 6 << 8;
const LOGICAL: u64 = 1 << 11;
const ALL_BUT_SELF: u64 = 3 << 18;
/// A page below 1 MiB for the second CPU's program, and one for what it changes.
const PROGRAM: u64 = 0x9000;
const CHANGED: u64 = 0xa000;
/// And one for its second program.
const TABLE_PROGRAM: u64 = 0xb000;
/// What counts the changes of each: the first goes on until the INIT has come.
const FLIPS: u64 = CHANGED + 16;
const TABLE_FLIPS: u64 = CHANGED + 32;

fn icr(destination: u64, command: u64) -> bool {
    wrmsr(msr::IA32_X2APIC_ICR, destination << 32 | command) == NONE
}

/// Every kind of interrupt to CPUs that are not the guest's. Its own are 0 and, with two, 1.
pub(crate) fn interrupts_of_others() {
    let vector = u64::from(*OWN.start());
    let destinations = (2..40).chain([0x7f, 0xff, 0x100, 0xffff, 0xffff_fffe]);
    let mut sent = 0;
    for destination in destinations {
        for command in [FIXED | vector, FIXED | 0x14, LOWEST | vector, SMI, NMI, INIT, STARTUP | 9]
        {
            sent += u32::from(icr(destination, command));
        }
    }
    // Logical: clusters that are not the guest's, and members of its own that it has not.
    for destination in [0xfffc, 0x1_ffff, 0xff_ffff, 0xfffe_ffff] {
        for command in [FIXED | vector, NMI, INIT, STARTUP | 9] {
            sent += u32::from(icr(destination, LOGICAL | command));
        }
    }
    say!("sent {sent} interrupts to others");
    let seen = (EXPECTED.load(Ordering::Relaxed), NMIS.load(Ordering::Relaxed));
    verdict("an interrupt for others comes to nobody", seen == (0, 0), format_args!("{seen:?}"));
}

/// Interrupts, resets and starts of its own second CPU, and instructions that it changes.
pub(crate) fn second_cpu() {
    put_program(PROGRAM, 0x8b, 0x89, FLIPS);
    // The CPU waits for its start meanwhile: vectors of exceptions, and others. Not the spurious one:
    // Bochs' local APIC would never end it.
    for vector in (16..64).chain([0xf0, 0xfe]) {
        icr(1, FIXED | vector);
    }
    for round in 0..50 {
        for command in [INIT, NMI, STARTUP | 9, FIXED | (16 + round % 16), NMI, INIT, STARTUP | 9] {
            icr(1, command);
            (0..200).for_each(|_| core::hint::spin_loop());
        }
        icr(0, ALL_BUT_SELF | FIXED | u64::from(TIMER));
    }
    let before = flips(FLIPS);
    wait_for_flips(FLIPS);
    changed_instructions();
    // A program of its own in a page of its own. QEMU's CPUs may execute for ever what one of them has changed: the one
    // that writes drops the translation first and writes then, and the other may translate the old bytes between.
    icr(1, INIT);
    put_program(TABLE_PROGRAM, 0x01, 0x0d, TABLE_FLIPS);
    icr(1, STARTUP | TABLE_PROGRAM >> 12);
    wait_for_flips(TABLE_FLIPS);
    changed_table_instructions();
    let flips = flips(FLIPS).wrapping_sub(before);
    verdict("its own second CPU runs after all this", flips > 0, format_args!("{flips} flips"));
    icr(1, INIT);
    icr(1, FIXED | 0x12);
}

/// Real mode: `cli`, DS = 0, then the byte at 0xA000 turns from `one` to `other` and back for ever, and the dword at
/// `counter` counts. The jump between is for Bochs, whose CPUs take turns where one of them jumps: the others would see
/// what was written last, and nothing else.
fn put_program(page: u64, one: u8, other: u8, counter: u64) {
    let [low, high, ..] = counter.to_le_bytes();
    let bytes = [
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xc6, 0x06, 0x00, 0xa0, one, 0xeb, 0x00, 0xc6, 0x06, 0x00,
        0xa0, other, 0x66, 0xff, 0x06, low, high, 0xeb, 0xed,
    ];
    // SAFETY: low memory that nobody uses once the loader is done.
    unsafe { cpu::physical::pointer::<[u8; 24]>(Hpa::new(page)).write_volatile(bytes) };
}

fn flips(counter: u64) -> u32 {
    // SAFETY: low memory that only the other CPU uses.
    unsafe { cpu::physical::pointer::<u32>(Hpa::new(counter)).read_volatile() }
}

fn wait_for_flips(counter: u64) {
    let before = flips(counter);
    while flips(counter) == before {
        core::hint::spin_loop();
    }
}

/// MOV from and to where nothing is, turned into each other by the other CPU between exit and decoding.
fn changed_instructions() {
    // `8b 01`: mov eax, [rcx]; `89 01`: mov [rcx], eax; then `ret`.
    let code = cpu::physical::pointer::<[u8; 3]>(Hpa::new(CHANGED));
    // SAFETY: as for the program.
    unsafe { code.write_volatile([0x8b, 0x01, 0xc3]) };
    for _ in 0..3000 {
        // SAFETY: the code is there, whatever its first byte, and returns.
        unsafe {
            asm!("call {}", in(reg) CHANGED, inout("rax") 0_u64 => _, in("rcx") 0xfed9_0000_u64);
        }
    }
}

/// SIDT, turned into a prefetch and back by the other CPU between exit and decoding.
fn changed_table_instructions() {
    // `0f 01 09`: sidt [rcx]; `0f 0d 09`: prefetchw [rcx]; then `ret`.
    let code = cpu::physical::pointer::<u8>(Hpa::new(CHANGED - 1));
    for (index, byte) in [(0, 0x0f), (2, 0x09), (3, 0xc3)] {
        // SAFETY: as for the program.
        unsafe { code.wrapping_add(index).write_volatile(byte) };
    }
    for _ in 0..20_000 {
        // SAFETY: the code is there, whatever its second byte, and returns.
        unsafe { asm!("call {}", in(reg) CHANGED - 1, in("rcx") CHANGED + 64) };
    }
}

/// Floods: NMIs to itself, interrupts to itself, the console, and CPUs that wait for nothing.
pub(crate) fn floods() {
    let before = NMIS.load(Ordering::Relaxed);
    (0..1000).for_each(|_| {
        icr(0, NMI);
    });
    let nmis = NMIS.load(Ordering::Relaxed) - before;
    verdict("NMIs to itself are its own", nmis > 0, format_args!("{nmis} of 1000"));
    interrupts::enable();
    for vector in OWN.cycle_a_few() {
        icr(0, FIXED | vector);
        wrmsr(msr::IA32_X2APIC_SELF_IPI, vector);
    }
    interrupts::disable();
    let taken = EXPECTED.load(Ordering::Relaxed);
    verdict("interrupts to itself are its own", taken >= 1000, format_args!("{taken} taken"));
    for index in 0..4000_u32 {
        let byte = if index % 80 == 79 { b'\n' } else { b'~' };
        // SAFETY: the guest's own console; it does not wait until there is room.
        unsafe { port_write(0x3f8, Width::Byte, u32::from(byte)) };
    }
    // SAFETY: as above.
    unsafe { port_write(0x3f8, Width::Byte, u32::from(b'\n')) };
    let stray = STRAY.load(Ordering::Relaxed);
    verdict("nothing came that it did not send itself", stray == 0, format_args!("{stray}"));
}

trait AFewTimes {
    fn cycle_a_few(self) -> impl Iterator<Item = u64>;
}

impl AFewTimes for core::ops::RangeInclusive<u8> {
    fn cycle_a_few(self) -> impl Iterator<Item = u64> {
        (0..50).flat_map(move |_| self.clone()).map(u64::from)
    }
}

/// Leaves with interrupts waiting that the host, too, has handlers for: as exceptions.
pub(crate) fn leave_exceptions_behind() {
    interrupts::disable();
    for vector in 16..32 {
        // SAFETY: the guest's own local APIC; interrupts are off.
        unsafe { write_msr(msr::IA32_X2APIC_SELF_IPI, vector) };
    }
}
