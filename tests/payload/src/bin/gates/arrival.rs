//! How interrupts, exceptions and `INT n` arrive.

use core::arch::asm;

use arch::msr;
use cpu::instructions::write_msr;
use payload::{Counter, exits, exits_during, say, verdict};

use crate::idt::{
    ABSENT_VECTOR, ICR_VECTOR, Idt, SELF_IPI_VECTOR, device, not_present_error, taken,
};

/// An error code's bits: the index is that of a gate; the event came from outside the program.
const IDT: u64 = 1 << 1;
const EXT: u64 = 1 << 0;

fn self_ipi(vector: u8) {
    // SAFETY: the guest starts in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_SELF_IPI, u64::from(vector)) };
}

pub(crate) fn self_ipis(count: u32) {
    for _ in 0..count {
        self_ipi(SELF_IPI_VECTOR);
    }
}

pub(crate) fn first_is_granted() {
    let before = exits(Counter::ShadowGate);
    let seen = taken(|| self_ipis(1));
    let gates = exits(Counter::ShadowGate) - before;
    verdict("a first arrival is delivered once", seen == 1, format_args!("{seen} taken"));
    say!("shadow_gate exits for a first arrival: {gates}");
}

pub(crate) fn granted_vector_costs(table_is: &str) {
    let mut seen = 0;
    let spent = exits_during(|| seen = taken(|| self_ipis(1000)));
    verdict(
        "a thousand interrupts of a granted vector are all taken",
        seen == 1000,
        format_args!("{seen} taken; IDT {table_is}"),
    );
    say!("exits for 1000 self-IPIs with EOI, IDT {table_is}: {spent}");
}

pub(crate) fn exceptions_cost() {
    let mut seen = 0;
    let spent = exits_during(|| {
        seen = taken(|| {
            for _ in 0..10 {
                // SAFETY: the handler changes nothing but a counter.
                unsafe { asm!("int3") };
            }
        });
    });
    verdict("the guest's exceptions are its own", seen == 10, format_args!("{seen} of 10"));
    say!("exits for 10 exceptions: {spent}");
}

pub(crate) fn software_interrupt_works() {
    let seen = taken(|| {
        for _ in 0..3 {
            // SAFETY: the handler changes nothing but a counter.
            unsafe { asm!("int 0x50") };
        }
    });
    verdict("INT n of a vector never granted works", seen == 3, format_args!("{seen} of 3"));
}

pub(crate) fn own_absent_gate_is_a_fault() {
    // SAFETY: the gate is not present, so #NP's handler runs and skips the instruction.
    let error = not_present_error(false, || unsafe { asm!("int 0x60") });
    verdict(
        "INT n of a gate that the guest itself left not present is #NP",
        error == u64::from(ABSENT_VECTOR) << 3 | IDT,
        format_args!("error code {error:#x}"),
    );
}

/// The guest takes away a gate that interrupts came through.
pub(crate) fn closed_gate_of_a_granted_vector_is_a_fault(table: Idt) {
    const VECTOR: u8 = 0x61;
    table.set(VECTOR, device as *const ());
    let seen = taken(|| self_ipi(VECTOR));
    table.close(VECTOR);
    let error = not_present_error(true, || self_ipi(VECTOR));
    // Emulators leave out EXT where they raise the exception themselves.
    verdict(
        "an interrupt for a gate that the guest has closed is #NP",
        seen == 1 && error | EXT == u64::from(VECTOR) << 3 | IDT | EXT,
        format_args!("{seen} taken before, then error code {error:#x}"),
    );
}

pub(crate) fn ipis_through_the_icr_arrive() {
    const TO_SELF: u64 = 1 << 18;
    const NMI: u64 = 4 << 8;
    // SAFETY: the guest starts in x2APIC mode; the request is for this CPU.
    let send = |request: u64| unsafe { write_msr(msr::IA32_X2APIC_ICR, request) };
    let gates = exits(Counter::ShadowGate);
    // By shorthand, and to APIC ID 0 in the high half.
    let seen = taken(|| {
        send(TO_SELF | u64::from(ICR_VECTOR));
        send(u64::from(ICR_VECTOR));
    });
    let gates = exits(Counter::ShadowGate) - gates;
    verdict(
        "IPIs that a CPU sends itself through the ICR arrive, their vector granted beforehand",
        seen == 2 && gates == 0,
        format_args!("{seen} of 2, {gates} shadow_gate exits"),
    );
    let seen = taken(|| send(TO_SELF | NMI));
    verdict("an NMI that a CPU sends itself arrives", seen == 1, format_args!("{seen} of 1"));
}

/// Every external vector but the spurious one, whose EOI a local APIC may take for nobody's.
const FIRST: u8 = 32;
const LAST: u8 = 254;

pub(crate) fn every_vector_arrives(table: Idt) {
    for vector in FIRST..=LAST {
        table.set(vector, device as *const ());
    }
    let before = exits(Counter::ShadowGate);
    let missed = |vector: &u8| taken(|| self_ipi(*vector)) != 1;
    let mut missing = (FIRST..=LAST).find(missed);
    let gates = exits(Counter::ShadowGate) - before;
    verdict(
        "each vector from 32 to 254 arrives once",
        missing.is_none(),
        format_args!("missing {missing:?}, {gates} shadow_gate exits"),
    );
    let spent = exits_during(|| missing = (FIRST..=LAST).find(missed));
    verdict("each arrives a second time", missing.is_none(), format_args!("missing {missing:?}"));
    say!("exits for one more of each of 223 vectors: {spent}");
}
