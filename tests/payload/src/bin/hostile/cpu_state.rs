//! Attempts through the CPU itself: MSRs, control registers, virtualization instructions, exceptions.

use core::sync::atomic::Ordering;

use cpu::instructions::cpuid;
use payload::{say, verdict};

use crate::trap::{self, NONE, STEPS, fault_of};

const UD: u32 = 6;
const GP: u32 = 13;

/// The fault of a WRMSR.
pub(crate) fn wrmsr(msr: u32, value: u64) -> u32 {
    fault_of!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

/// What an RDMSR gives, or its fault.
fn rdmsr(msr: u32) -> Result<u64, u32> {
    let (low, high): (u32, u32);
    let fault = fault_of!("rdmsr", in("ecx") msr, lateout("eax") low, lateout("edx") high);
    if fault == NONE { Ok(u64::from(high) << 32 | u64::from(low)) } else { Err(fault) }
}

/// MSRs and values that would reach beyond the guest: virtualization, system management, microcode,
/// power, tracing to physical addresses, user interrupts, the APIC's page, reserved bits.
const FORBIDDEN: &[(u32, u64)] = &[
    (0x3a, 5),
    (0x79, 0x1000),
    (0x9b, 1),
    (0x9e, 0),
    (0x150, 1 << 63),
    (0x199, 0xffff),
    (0x1f2, 0),
    (0x277, 0x0203_0203_0203_0203),
    (0x480, 0),
    (0x560, 0xffff_f000),
    (0x570, 0x2101),
    (0x600, 0xffff_f000),
    (0x610, 0),
    (0x770, 1),
    (0x985, 0),
    (0xc80, 1),
    (0xda0, 1 << 8),
    (0xda0, 1 << 14),
    (0x1b, 0xc00),
    (0x1b, 0x400),
    (0x80e, 0),
    (0x830, 0xffff_ffff),
    (0x832, 0x6_0070),
    (0xc000_0080, 1 << 12 | 0x500),
    (0xc001_0020, 0x1000),
    (0xc001_0058, 0xe000_0021),
    (0xc001_0062, 7),
    (0xc001_0111, 0x30000),
    (0xc001_0114, 0),
    (0xc001_0117, 0x1000),
    (0x1234_5678, 0),
    (0xffff_ffff, 0),
];

/// Of an AMD CPU, whose MSRs no bit of CPUID announces: a write is ignored.
const IGNORED: [u32; 3] = [0xc001_0020, 0xc001_0058, 0xc001_0111];

pub(crate) fn msrs() {
    let mut taken = 0;
    for (msr, value) in FORBIDDEN {
        let fault = wrmsr(*msr, *value);
        let is_ignored = IGNORED.contains(msr) && fault == NONE && rdmsr(*msr) != Ok(*value);
        if fault != GP && !is_ignored {
            taken += 1;
            say!("WRMSR {msr:#x} of {value:#x}: fault {fault}");
        }
    }
    let count = FORBIDDEN.len();
    verdict(
        "no MSR that reaches further can be written",
        taken == 0,
        format_args!("{count} tried"),
    );
    let told = (0x480..=0x491).chain([0xc001_0114, 0xc001_0117, 0x9b]).filter(|msr| {
        let read = rdmsr(*msr);
        read.is_ok_and(|value| value != 0)
    });
    let told = told.count();
    verdict("no MSR of virtualization can be read", told == 0, format_args!("{told} readable"));
    let efer = rdmsr(0xc000_0080).unwrap_or(0);
    verdict("EFER shows no SVME", efer & 1 << 12 == 0, format_args!("{efer:#x}"));
    // What is written here is ignored, virtual or refused: SYSCFG, DEBUGCTL, ranges of MTRRs, TSC, TSC_ADJUST.
    for msr in [0xc001_0010, 0x1d9, 0x200, 0x201, 0x10, 0x3b] {
        let _ = wrmsr(msr, 0x806);
    }
}

fn is_intel() -> bool {
    cpuid(0, 0).ebx.to_le_bytes() == *b"Genu"
}

pub(crate) fn instructions() {
    let intel = is_intel();
    let faults = [
        ("VMCALL", fault_of!("vmcall")),
        ("VMMCALL", fault_of!("vmmcall")),
        ("VMLAUNCH", fault_of!("vmlaunch")),
        ("VMXOFF", fault_of!("vmxoff")),
        // QEMU's AMD CPU takes them for nothing.
        ("VMXON", if intel { fault_of!("vmxon [rax]", in("rax") trap::page()) } else { UD }),
        ("VMPTRLD", if intel { fault_of!("vmptrld [rax]", in("rax") trap::page()) } else { UD }),
        ("VMREAD", fault_of!("vmread rax, rax", inout("rax") 0_u64 => _)),
        ("INVEPT", fault_of!("invept rax, [rcx]", in("rax") 2_u64, in("rcx") trap::page())),
        ("INVVPID", fault_of!("invvpid rax, [rcx]", in("rax") 2_u64, in("rcx") trap::page())),
        ("VMFUNC", fault_of!(".byte 0x0f, 0x01, 0xd4", in("eax") 0, in("ecx") 0)),
        ("VMRUN", fault_of!("vmrun rax", in("rax") 0x1000_u64)),
        ("VMLOAD", fault_of!("vmload rax", in("rax") 0x1000_u64)),
        ("VMSAVE", fault_of!("vmsave rax", in("rax") 0x1000_u64)),
        ("STGI", fault_of!("stgi")),
        ("CLGI", fault_of!("clgi")),
        ("SKINIT", fault_of!("skinit eax", in("eax") 0x10000)),
        ("INVLPGA", fault_of!("invlpga rax, ecx", in("rax") 0_u64, in("ecx") 0)),
        ("GETSEC", fault_of!("getsec", in("eax") 0)),
        ("RSM", fault_of!("rsm")),
        ("ENCLS", fault_of!(".byte 0x0f, 0x01, 0xcf", in("eax") 0)),
        ("PCONFIG", fault_of!(".byte 0x0f, 0x01, 0xc5", in("eax") 0)),
        ("XSETBV without x87", xsetbv(0, 6)),
        ("XSETBV of what the CPU lacks", xsetbv(0, u64::MAX)),
        ("XSETBV 1", xsetbv(1, 7)),
    ];
    let works = |fault: u32| !matches!(fault, UD | GP);
    for (name, fault) in faults.iter().filter(|(_, fault)| works(*fault)) {
        say!("{name}: fault {fault}");
    }
    let working = faults.iter().filter(|(_, fault)| works(*fault)).count();
    verdict("no instruction of virtualization works", working == 0, format_args!("{working} do"));
    // Allowed, or the CPU's own to refuse: what is in the caches stays.
    for fault in [fault_of!("wbinvd"), fault_of!("invd")] {
        verdict("the caches can be written back", fault == NONE, format_args!("fault {fault}"));
    }
}

fn xsetbv(register: u32, value: u64) -> u32 {
    let (low, high) = (value as u32, (value >> 32) as u32);
    fault_of!("xsetbv", in("ecx") register, in("eax") low, in("edx") high)
}

pub(crate) fn control_registers() {
    let (cr0, cr3, cr4): (u64, u64, u64);
    // SAFETY: reads.
    unsafe {
        core::arch::asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4);
    }
    let write_cr0 = |value: u64| fault_of!("mov cr0, rax", in("rax") value);
    let write_cr4 = |value: u64| fault_of!("mov cr4, rax", in("rax") value);
    // QEMU's CPU takes these.
    let of_intel = |write: &dyn Fn() -> u32| if is_intel() { write() } else { GP };
    let refused = [
        ("CR0 without PE", of_intel(&|| write_cr0(cr0 & !1))),
        ("CR0 bit 32", of_intel(&|| write_cr0(cr0 | 1 << 32))),
        ("CR3 bit 51", fault_of!("mov cr3, rax", in("rax") cr3 | 1 << 51)),
        ("CR4.VMXE", write_cr4(cr4 | 1 << 13)),
        ("CR4 bit 40", write_cr4(cr4 | 1 << 40)),
        // The CPU may have these; the guest is not shown them.
        ("CR4.CET", write_cr4(cr4 | 1 << 23)),
        ("CR4.FRED", write_cr4(cr4 | 1 << 32)),
        ("CR8 of 16", of_intel(&|| fault_of!("mov cr8, rax", in("rax") 16_u64))),
    ];
    let taken = refused.iter().filter(|(_, fault)| *fault == NONE).count();
    for (name, _) in refused.iter().filter(|(_, fault)| *fault == NONE) {
        say!("{name} was taken");
    }
    verdict(
        "no control register takes what it must not",
        taken == 0,
        format_args!("{taken} taken"),
    );
    // Caches off and on again: the core's, or nobody's.
    let (fault, back) = (write_cr0(cr0 | 1 << 30), write_cr0(cr0));
    verdict("CR0.CD can be set", fault == NONE && back == NONE, format_args!("{fault:#x}"));
    let (set, seen, again): (u64, u64, u64);
    // SAFETY: slower at most, and CR0 is as it was at the end.
    unsafe {
        core::arch::asm!(
            "mov cr0, {0}", "mov {0}, cr0", "smsw {1}", "mov cr0, {2}", "mov {2}, cr0",
            inout(reg) cr0 | 1 << 30 => set, out(reg) seen, inout(reg) cr0 => again,
        );
    }
    let low = |value: u64| value as u32;
    let same = set == cr0 | 1 << 30 && low(seen) == low(set) && again == cr0;
    verdict("CR0.CD reads as it was written", same, format_args!("{set:#x} {seen:#x} {again:#x}"));
    let is_set = |value: u64| {
        let read: u64;
        // SAFETY: machine checks are on or off, and CR4 is as it was at the end.
        unsafe {
            core::arch::asm!("mov cr4, {0}", "mov {0}, cr4", "mov cr4, {1}", inout(reg) value => read, in(reg) cr4);
        }
        read == value
    };
    let same = is_set(cr4 | 1 << 6) && is_set(cr4 & !(1 << 6));
    verdict("CR4.MCE reads as it was written", same, format_args!("{cr4:#x}"));
}

/// Lets the program use XMM registers.
pub(crate) fn enable_vector_registers() {
    const OSFXSR: u64 = 1 << 9;
    // SAFETY: every 64-bit CPU has them.
    unsafe {
        core::arch::asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, const OSFXSR);
    }
}

/// A trap flag over instructions that the hypervisor carries out.
pub(crate) fn single_steps() {
    let count = |what: &str, expected: u32, run: &dyn Fn()| {
        let before = STEPS.load(Ordering::Relaxed);
        run();
        let steps = STEPS.load(Ordering::Relaxed) - before;
        let ok = steps == expected;
        verdict("a single step traps behind it", ok, format_args!("{what}: {steps} of {expected}"));
    };
    // POPF sets TF: the trap comes behind each instruction after it, up to the second POPF's own.
    // SAFETY: the handler returns.
    count("NOP, NOP", 3, &|| unsafe {
        core::arch::asm!(
            "pushf",
            "pushf",
            "or dword ptr [rsp], 0x100",
            "popf",
            "nop",
            "nop",
            "popf"
        );
    });
    // SAFETY: as above.
    count("CPUID, NOP", 3, &|| unsafe {
        core::arch::asm!(
            "mov r10, rbx", "pushf", "pushf", "or dword ptr [rsp], 0x100", "popf", "cpuid", "nop",
            "popf", "mov rbx, r10", inout("eax") 0 => _, out("r10") _, out("ecx") _, out("edx") _
        );
    });
    // SAFETY: as above; a port that nobody has.
    count("OUT, NOP", 3, &|| unsafe {
        core::arch::asm!(
            "pushf", "pushf", "or dword ptr [rsp], 0x100", "popf", "out 0x80, al", "nop", "popf",
            in("al") 0_u8
        );
    });
    // SAFETY: as above; an address where nothing is.
    count("MOV from nowhere, NOP", 3, &|| unsafe {
        core::arch::asm!(
            "pushf", "pushf", "or dword ptr [rsp], 0x100", "popf", "mov eax, [rax]", "nop", "popf",
            inout("rax") 0xfed9_0000_u64 => _
        );
    });
}

/// An IDT where there is no memory, and in the middle of a page: taken, and no use.
pub(crate) fn descriptor_tables() {
    let table = trap::page();
    for base in [0xfed9_0000, 0xd000_0ff8, 0xfec0_0000, 0xfee0_0000, table + 8, table] {
        trap::point_at(base, 0xfff);
        let mut stored = [0_u16; 5];
        // SAFETY: ten bytes of its own.
        unsafe { core::arch::asm!("sidt [{}]", in(reg) &raw mut stored) };
        if u64::from(stored[1]) | u64::from(stored[2]) << 16 != base {
            say!("FAILED: SIDT tells {stored:x?} and not {base:#x}");
        }
    }
    let task = fault_of!("ltr ax", in("ax") 0xfff8_u16);
    let local = fault_of!("lldt ax", in("ax") 0xfff8_u16);
    let far = (task, local) == (GP, GP);
    verdict("no descriptor behind the GDT is loaded", far, format_args!("{task}, {local}"));
    let software = fault_of!("int 0x50");
    verdict("INT n of its own gate works", software == NONE, format_args!("fault {software}"));
}
