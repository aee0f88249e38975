//! The GDT and the tasks' state segments.

use super::{
    CODE, CODE_ABSENT, CODE_D, CODE_SHORT, DATA, DATA_ABSENT, GATE_B, READ_ONLY, TASK_A,
    TASK_ABSENT, TASK_B, TASK_C, TASK_D, TASK_SHORT, TSS_A, TSS_B, TSS_C, TSS_D, Tss, address,
    protected_task_d,
};

const fn segment(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 15) << 48
        | (flags as u64) << 52
        | (base >> 24) << 56
}

pub(super) const fn task_gate(selector: u16) -> u64 {
    (selector as u64) << 16 | 0xe5 << 40
}

pub(super) fn descriptors() -> [u64; 16] {
    let mut gdt = [0; 16];
    let code_d = protected_task_d as *const () as u32;
    for (selector, entry) in [
        (CODE, segment(0, 0xf_ffff, 0x9b, 0xc)),
        (DATA, segment(0, 0xf_ffff, 0x93, 0xc)),
        (TASK_A, segment(address(&TSS_A), 0x67, 0x89, 0)),
        (TASK_B, segment(address(&TSS_B), 0x67, 0x89, 0)),
        (TASK_C, segment(address(&TSS_C), 0x67, 0x89, 0)),
        (GATE_B, task_gate(TASK_B)),
        (TASK_ABSENT, segment(address(&TSS_C), 0x67, 0x09, 0)),
        (TASK_SHORT, segment(address(&TSS_C), 0x66, 0x89, 0)),
        (0x48, segment(0, 0xf_ffff, 0x9b, 0xa)),
        (READ_ONLY, segment(0, 0xf_ffff, 0x91, 0xc)),
        (DATA_ABSENT, segment(0, 0xf_ffff, 0x13, 0xc)),
        (TASK_D, segment(address(&TSS_D), 0x2b, 0x81, 0)),
        (CODE_D, segment(code_d, 0xffff, 0x9b, 4)),
        (CODE_ABSENT, segment(0, 0xf_ffff, 0x1b, 0xc)),
        (CODE_SHORT, segment(0, 0xff, 0x9b, 4)),
    ] {
        gdt[usize::from(selector >> 3)] = entry;
    }
    gdt
}

/// The 16-bit TSS.
pub(super) fn task_d() -> Tss {
    let mut tss_d = Tss([0; 128]);
    for (at, value) in [
        (0x10, 2),
        (0x14, 0x4321),
        (0x1a, 0x100),
        (0x22, DATA),
        (0x24, CODE_D),
        (0x26, DATA),
        (0x28, DATA),
    ] {
        tss_d.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    tss_d
}

pub(super) fn put(tss: &mut Tss, at: usize, value: u32) {
    tss.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The TSS of a task that begins at `rip`.
pub(super) fn task(rip: u32, stack: u32) -> Tss {
    let mut tss = Tss([0; 128]);
    for (at, value) in [(0x04, stack), (0x08, DATA.into()), (0x20, rip), (0x24, 2), (0x38, stack)] {
        put(&mut tss, at, value);
    }
    for at in [0x48, 0x50, 0x54, 0x58, 0x5c] {
        put(&mut tss, at, DATA.into());
    }
    put(&mut tss, 0x4c, CODE.into());
    // No permission map.
    put(&mut tss, 0x64, 0x68 << 16);
    tss
}
