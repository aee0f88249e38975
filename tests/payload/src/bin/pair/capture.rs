//! What the second CPU holds at its first instruction, written down in real mode before anything has changed it; then it
//! goes on at the start page.

use core::arch::global_asm;

use arch::Hpa;
use cpu::physical::pointer;

use crate::other::START_PAGE;

/// The page of the start-up IPI. Its code stays below [`DATA`].
const PAGE: u64 = 0xe000;
pub(crate) const VECTOR: u32 = (PAGE >> 12) as u32;
const DATA: u64 = 0x400;
const SELECTORS: u64 = 0x420;
const FLAGS: u64 = 0x42c;
const CONTROL: u64 = 0x430;
const DEBUG: u64 = 0x440;
const EFER: u64 = 0x458;
const GDTR: u64 = 0x460;
const IDTR: u64 = 0x468;
const STARTS: u64 = 0x470;
const NMIS: u64 = 0x474;

global_asm!(
    ".pushsection .rodata.pair_capture, \"a\"",
    ".code16",
    "pair_capture:",
    "mov dword ptr cs:[0x400], eax",
    "mov dword ptr cs:[0x404], ecx",
    "mov dword ptr cs:[0x408], edx",
    "mov dword ptr cs:[0x40c], ebx",
    "mov dword ptr cs:[0x410], esp",
    "mov dword ptr cs:[0x414], ebp",
    "mov dword ptr cs:[0x418], esi",
    "mov dword ptr cs:[0x41c], edi",
    "mov word ptr cs:[0x420], es",
    "mov word ptr cs:[0x422], cs",
    "mov word ptr cs:[0x424], ss",
    "mov word ptr cs:[0x426], ds",
    "mov word ptr cs:[0x428], fs",
    "mov word ptr cs:[0x42a], gs",
    // On the stack of a reset: the last bytes of the first 64 KiB.
    "pushfd",
    "pop eax",
    "mov dword ptr cs:[0x42c], eax",
    "mov eax, cr0",
    "mov dword ptr cs:[0x430], eax",
    "mov eax, cr2",
    "mov dword ptr cs:[0x434], eax",
    "mov eax, cr3",
    "mov dword ptr cs:[0x438], eax",
    "mov eax, cr4",
    "mov dword ptr cs:[0x43c], eax",
    "mov eax, dr0",
    "mov dword ptr cs:[0x440], eax",
    "mov eax, dr1",
    "mov dword ptr cs:[0x444], eax",
    "mov eax, dr2",
    "mov dword ptr cs:[0x448], eax",
    "mov eax, dr3",
    "mov dword ptr cs:[0x44c], eax",
    "mov eax, dr6",
    "mov dword ptr cs:[0x450], eax",
    "mov eax, dr7",
    "mov dword ptr cs:[0x454], eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "mov dword ptr cs:[0x458], eax",
    "mov dword ptr cs:[0x45c], edx",
    // SGDT and SIDT with 32-bit operands: the assembler's spelling of it differs by version.
    ".byte 0x2e, 0x66, 0x0f, 0x01, 0x06",
    ".word 0x460",
    ".byte 0x2e, 0x66, 0x0f, 0x01, 0x0e",
    ".word 0x468",
    "inc dword ptr cs:[0x470]",
    // JMP 1000:0.
    ".byte 0xea",
    ".word 0, 0x1000",
    // An NMI's handler, for the table of real mode.
    "pair_capture_nmi:",
    "inc dword ptr cs:[0x474]",
    "iret",
    "pair_capture_end:",
    ".code64",
    ".popsection",
);

unsafe extern "C" {
    static pair_capture: u8;
    static pair_capture_nmi: u8;
    static pair_capture_end: u8;
}

/// Copies the code to its page, and has real mode's vector 2 lead to its handler.
pub(crate) fn prepare() {
    const { assert!(START_PAGE.as_u64() == 0x1_0000) };
    let start = &raw const pair_capture;
    let length = &raw const pair_capture_end as usize - start as usize;
    let page = pointer::<u8>(Hpa::new(PAGE));
    // SAFETY: low memory that nobody uses once the loader is done.
    unsafe { page.write_bytes(0, 4096) };
    // SAFETY: as above; the linker put the code there.
    unsafe { core::ptr::copy_nonoverlapping(start, page, length) };
    let offset = &raw const pair_capture_nmi as usize - start as usize;
    let gate = (PAGE as u32 >> 4) << 16 | offset as u32;
    // SAFETY: nobody calls the firmware any more.
    unsafe { pointer::<u32>(Hpa::new(8)).write_volatile(gate) };
}

fn word(at: u64) -> u32 {
    // SAFETY: of the page, which the second CPU writes at its start only.
    unsafe { pointer::<u32>(Hpa::new(PAGE + at)).read_volatile() }
}

/// EAX to EDI in encoding order.
pub(crate) fn registers() -> [u32; 8] {
    core::array::from_fn(|index| word(DATA + 4 * index as u64))
}

/// ES, CS, SS, DS, FS, GS.
pub(crate) fn selectors() -> [u16; 6] {
    core::array::from_fn(|index| {
        let both = word((SELECTORS + 2 * index as u64) & !3);
        if index & 1 == 0 { both as u16 } else { (both >> 16) as u16 }
    })
}

pub(crate) fn flags() -> u32 {
    word(FLAGS)
}

/// CR0, CR2, CR3, CR4.
pub(crate) fn control() -> [u32; 4] {
    core::array::from_fn(|index| word(CONTROL + 4 * index as u64))
}

/// DR0 to DR3, DR6, DR7.
pub(crate) fn debug() -> [u32; 6] {
    core::array::from_fn(|index| word(DEBUG + 4 * index as u64))
}

pub(crate) fn efer() -> u64 {
    u64::from(word(EFER + 4)) << 32 | u64::from(word(EFER))
}

/// Base and limit of GDTR and IDTR.
pub(crate) fn tables() -> [(u32, u16); 2] {
    [GDTR, IDTR].map(|at| {
        let low = word(at);
        (low >> 16 | word(at + 4) << 16, low as u16)
    })
}

/// How often it has started.
pub(crate) fn starts() -> u32 {
    word(STARTS)
}

/// NMIs that have come in real mode.
pub(crate) fn nmis() -> u32 {
    word(NMIS)
}
