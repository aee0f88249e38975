//! Attempts through addresses: memory, device registers, ports, configuration space.

use core::arch::asm;
use core::cell::UnsafeCell;

use arch::Hpa;
use arch::machine::Width;
use cpu::instructions::{cpuid, port_read, port_write};
use cpu::physical::{mmio_read, mmio_write};
use payload::{say, verdict};

use crate::trap::{NONE, fault_of};

const ALL_ONES: u64 = u64::MAX;

/// Tables that show any 2 MiB of the address space at [`WINDOW`].
#[repr(align(4096))]
struct Frame(UnsafeCell<[u64; 512]>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Frame {}
static POINTERS: Frame = Frame(UnsafeCell::new([0; 512]));
static DIRECTORY: Frame = Frame(UnsafeCell::new([0; 512]));
const WINDOW: u64 = 1 << 39;

/// Where `gpa` can be reached.
fn window(gpa: u64) -> u64 {
    const PAGE_SIZE: u64 = 0x80;
    let (root, frame): (u64, u64) = (root(), gpa & !0x1f_ffff);
    let tables = [(root + 8, POINTERS.0.get() as u64 | 3), (POINTERS.0.get() as u64, 0)];
    let [top, (pointers, _)] = tables;
    let entries = [
        top,
        (pointers, DIRECTORY.0.get() as u64 | 3),
        (DIRECTORY.0.get() as u64, frame | PAGE_SIZE | 3),
    ];
    for (at, entry) in entries {
        // SAFETY: the guest's own tables, mapped onto themselves; nobody uses the range otherwise.
        unsafe { (at as *mut u64).write_volatile(entry) };
    }
    // SAFETY: drops a translation.
    unsafe { asm!("invlpg [{}]", in(reg) WINDOW) };
    WINDOW + (gpa - frame)
}

fn root() -> u64 {
    let cr3: u64;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr3", out(reg) cr3) };
    cr3 & !0xfff
}

/// Writes to and reads from `gpa` in many ways; whether all reads are ones.
fn nothing_at(gpa: u64) -> bool {
    let at = window(gpa);
    let mut ones = true;
    for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
        // SAFETY: mapped above; whatever is there, the hypervisor must protect it.
        unsafe { mmio_write(Hpa::new(at), width, 0x5a5a_5a5a_5a5a_5a5a) };
        // SAFETY: as above.
        ones &= unsafe { mmio_read(Hpa::new(at), width) } == ALL_ONES & width.mask();
    }
    let (exchanged, added, read): (u32, u32, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "lock or dword ptr [{at}], 1", "lock inc qword ptr [{at}]", "xchg [{at}], {a:e}",
            "lock xadd [{at}], {b:e}", "lock cmpxchg [{at}], {c:e}", "lock bts dword ptr [{at}], 3",
            "mov {d}, [{at} + 3]", "movups [{at}], xmm0", "not byte ptr [{at}]",
            at = in(reg) at, a = inout(reg) 0_u32 => exchanged, b = inout(reg) 1_u32 => added,
            c = in(reg) 0_u32, d = out(reg) read, out("eax") _
        );
    }
    ones && read == ALL_ONES && (exchanged, added) == (u32::MAX, u32::MAX)
}

/// What the machine has and the guest has not: RAM above its own, the IOMMU's registers, the HPET, the
/// firmware's flash, other devices' registers, the end of the physical address space.
pub(crate) fn addresses() {
    let bits = cpuid(0x8000_0008, 0).eax & 0xff;
    let end = 1_u64 << bits;
    let fixed = [
        0x100_0000,
        0x1000_0000,
        0x1fff_f000,
        0x3fff_f000,
        0x7fe0_0000,
        0x8000_0000,
        0xc000_0000,
        0xe000_0000,
        0xfe00_0000,
        0xfea0_0000,
        0xfeb0_0000,
        0xfebf_0000,
        0xfed0_0000,
        0xfed1_c000,
        0xfed4_0000,
        0xfed9_0000,
        0xfed9_0028,
        0xffc0_0000,
        0xfffc_0000,
        0xffff_fff0,
        0x1_0000_0000,
        0x1_4000_0000,
        0x7_0000_0000,
        end / 2,
        end - 0x1000,
    ];
    // The ECAM window is the guest's own, and its registers read as they are.
    let found = fixed.into_iter().filter(|gpa| *gpa != 0xe000_0000 && !nothing_at(*gpa));
    let found = found.inspect(|gpa| say!("something is at {gpa:#x}")).count();
    verdict("no address but its own leads anywhere", found == 0, format_args!("{found} do"));
    // The local APIC's page: this guest is in x2APIC mode. Writes of ICR's two halves for the rest.
    let at = window(0xfee0_0000);
    for (offset, value) in [(0x310, 0), (0x300, 0xc_4500), (0x300, 0x8_4400), (0x300, 0x8_0070)] {
        // SAFETY: mapped above.
        unsafe { mmio_write(Hpa::new(at + offset), Width::Dword, value) };
    }
    strings(window(0x8000_0000));
}

/// String instructions to and from where nothing is, longer than one exit carries out.
fn strings(at: u64) {
    let mut bytes = [0_u8; 64];
    let from = bytes.as_mut_ptr();
    // SAFETY: the buffer is the guest's, and nothing is at the other address.
    unsafe {
        asm!(
            "mov rdi, {at}", "mov ecx, 20000", "rep stosb",
            "mov rdi, {bytes}", "mov rsi, {at}", "mov ecx, 64", "rep movsb",
            "mov rdi, {at}", "mov ecx, 64", "mov dx, 0x1ce", "rep insb",
            "mov rsi, {at}", "mov ecx, 64", "mov dx, 0x80", "rep outsb",
            at = in(reg) at, bytes = in(reg) from, in("al") 0_u8,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _
        );
    }
    let ones = bytes.iter().all(|byte| *byte == 0xff);
    verdict("string instructions bring nothing", ones, format_args!("{bytes:02x?}"));
    // RCX without end: the first page that is not mapped stops it.
    let end = WINDOW + 0x20_0000;
    let fault = fault_of!(
        "rep insb", inout("rdi") end - 16 => _, inout("rcx") u64::MAX => _, in("dx") 0x1ce_u16
    );
    verdict("a string ends at the page that is not there", fault == 14, format_args!("{fault}"));
}

/// Ports of the machine's own devices: DMA controllers, power management, firmware configuration,
/// SMI, debug exits, the shutdown port of an emulator, disks, graphics, PCI BARs. Not the ACPI timer (0xb008 in
/// Bochs, 0x608 in QEMU): every guest reads the machine's.
const FOREIGN_PORTS: &[u16] = &[
    0x00, 0x08, 0x0d, 0x80, 0x81, 0xb2, 0xb3, 0xc0, 0xd0, 0xf4, 0x170, 0x177, 0x1ce, 0x1f0, 0x1f7,
    0x2f8, 0x2fd, 0x376, 0x3c0, 0x3d4, 0x3f2, 0x402, 0x501, 0x510, 0x511, 0x514, 0x620, 0x660,
    0xaf00, 0xb000, 0xb004, 0xb100, 0xc000, 0xc040, 0xcd8, 0x5658, 0x8900, 0xffff,
];

pub(crate) fn ports() {
    let mut found = 0;
    for port in FOREIGN_PORTS {
        for width in [Width::Byte, Width::Word, Width::Dword] {
            // SAFETY: the hypervisor answers, whatever the machine has there.
            unsafe { port_write(*port, width, 0x2001_2001) };
            // SAFETY: as above.
            let value = unsafe { port_read(*port, width) };
            if u64::from(value) != width.mask() {
                found += 1;
                say!("port {port:#x} reads {value:#x}");
            }
        }
    }
    // The word at which Bochs switches the machine off.
    for byte in b"Shutdown" {
        // SAFETY: as above.
        unsafe { port_write(0x8900, Width::Byte, u32::from(*byte)) };
    }
    verdict("no port but its own leads anywhere", found == 0, format_args!("{found} do"));
}

/// Looks for functions through both mechanisms, and writes to all of them.
pub(crate) fn configuration() {
    const ECAM: u64 = 0xe000_0000;
    let mut found = 0;
    for function in (0..0x200).chain([0x0800, 0x1000, 0xff00, 0xffff_u32]) {
        if function == 0 {
            continue;
        }
        for (offset, value) in [(0, 0), (4, 7), (0x10, u32::MAX), (0x40, u32::MAX), (0xfc, 0)] {
            found += u32::from(config(function, offset, value) != u32::MAX);
        }
    }
    for function in [1, 8, 0xf8, 0xfb, 0x100] {
        let at = Hpa::new(window(ECAM + (function << 12)));
        for offset in [0, 4, 0x10, 0x100, 0xffc] {
            // SAFETY: mapped above; the hypervisor answers.
            unsafe { mmio_write(at.wrapping_add(offset), Width::Dword, 6) };
            // SAFETY: as above.
            let value = unsafe { mmio_read(at.wrapping_add(offset), Width::Dword) };
            found += u32::from(value != u64::from(u32::MAX));
        }
    }
    // CONFIG_ADDRESS in pieces and across its end, CONFIG_DATA unaligned.
    for (port, width) in [(0xcf8, Width::Byte), (0xcf9 - 2, Width::Word), (0xcfa, Width::Word)] {
        // SAFETY: the guest's own ports.
        unsafe { port_write(port, width, 0x80) };
    }
    for port in [0xcfd, 0xcfe, 0xcff] {
        // SAFETY: as above.
        let _ = unsafe { port_read(port, Width::Dword) };
    }
    verdict("no function but its own is there", found == 0, format_args!("{found} answers"));
}

fn config(function: u32, offset: u32, value: u32) -> u32 {
    // SAFETY: the guest's own configuration ports.
    unsafe { port_write(0xcf8, Width::Dword, 1 << 31 | function << 8 | offset) };
    // SAFETY: as above.
    unsafe { port_write(0xcfc, Width::Dword, value) };
    // SAFETY: as above.
    unsafe { port_read(0xcfc, Width::Dword) }
}

/// Instructions that need not be known to the hypervisor's decoder are this guest's own end; those
/// that no CPU knows are its exception.
pub(crate) fn instruction_bytes() {
    let at = window(0xfed9_0000);
    let fault = fault_of!(
        ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x8b, 0x00",
        inout("rax") at => _
    );
    verdict("15 bytes of prefixes are an instruction", fault == NONE, format_args!("{fault}"));
    let fault = fault_of!(
        ".byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x8b, 0x00",
        inout("rax") at => _
    );
    verdict("16 are a fault", fault == 13, format_args!("{fault}"));
    let fault = fault_of!("lock mov [rax], eax", inout("rax") at => _);
    verdict("LOCK MOV is undefined", fault == 6, format_args!("{fault}"));
}

/// Table registers stored to a device's registers, and code there.
pub(crate) fn device_registers() {
    let at = window(0xfec0_0000);
    let faults = [
        fault_of!("sidt [rax]", in("rax") at),
        fault_of!("sgdt [rax]", in("rax") at + 0x20),
        fault_of!("sldt [rax]", in("rax") at),
        fault_of!("str [rax]", in("rax") at + 0xffe),
    ];
    let stored = faults.iter().all(|fault| *fault == NONE);
    verdict("a device takes what SIDT and its kin store", stored, format_args!("{faults:?}"));
    // It reads as zeros, ADD [RAX], AL, up to its last byte; behind it nothing is.
    let mut scratch = [0_u8; 8];
    let code = at + 0xfe0;
    let fault = fault_of!("jmp rcx", in("rcx") code, inout("rax") scratch.as_mut_ptr() => _);
    verdict("code in a device runs to its end", fault == 6, format_args!("{fault}"));
}
