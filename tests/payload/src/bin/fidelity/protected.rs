//! Out of long mode and back: a piece of 32-bit code in protected mode, with tables and tasks of its own, that writes down
//! what it sees.
//!
//! Task A runs the code. B is the task behind task gates; C is one whose TSS a trial makes; D has a 16-bit TSS.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;

use crate::trap::Place;

/// Selectors of the GDT below.
pub(crate) const DATA: u16 = 0x10;
pub(crate) const TASK_A: u16 = 0x18;
pub(crate) const TASK_B: u16 = 0x20;
pub(crate) const TASK_C: u16 = 0x28;
pub(crate) const GATE_B: u16 = 0x30;
pub(crate) const TASK_ABSENT: u16 = 0x38;
pub(crate) const TASK_SHORT: u16 = 0x40;
pub(crate) const READ_ONLY: u16 = 0x50;
pub(crate) const DATA_ABSENT: u16 = 0x58;
pub(crate) const TASK_D: u16 = 0x60;
pub(crate) const CODE_ABSENT: u16 = 0x70;
pub(crate) const CODE_SHORT: u16 = 0x78;
const CODE_D: u16 = 0x68;
const CODE: u16 = 8;
const STACK_BYTES: u32 = 1024;

/// A 32-bit TSS, or a 16-bit one.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
pub(crate) struct Tss(pub(crate) [u8; 128]);

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_BYTES as usize]>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Stack {}

const fn stack() -> Stack {
    Stack(UnsafeCell::new([0; STACK_BYTES as usize]))
}

static GDT: Place<[u64; 16]> = Place(UnsafeCell::new([0; 16]));
static IDT: Place<[u64; 128]> = Place(UnsafeCell::new([0; 128]));
static BODY: Place<[u8; 256]> = Place(UnsafeCell::new([0; 256]));
static TSS_A: Place<Tss> = Place(UnsafeCell::new(Tss([0; 128])));
static TSS_B: Place<Tss> = Place(UnsafeCell::new(Tss([0; 128])));
static TSS_C: Place<Tss> = Place(UnsafeCell::new(Tss([0; 128])));
static TSS_D: Place<Tss> = Place(UnsafeCell::new(Tss([0; 128])));
static STACK_A: Stack = stack();
static STACK_B: Stack = stack();
static STACK_C: Stack = stack();

/// What the code has written down, and where it goes on.
static NOTES: Place<[u32; 128]> = Place(UnsafeCell::new([0; 128]));
static NEXT: Place<u32> = Place(UnsafeCell::new(0));
/// What task B does: bits of [`Handler`].
static HOW: Place<u32> = Place(UnsafeCell::new(0));
static SAVED_STACK: Place<u64> = Place(UnsafeCell::new(0));
static STACK_IN_A: Place<u32> = Place(UnsafeCell::new(0));
static TABLES_BEFORE: Place<[u8; 32]> = Place(UnsafeCell::new([0; 32]));
static TABLES: Place<[u8; 32]> = Place(UnsafeCell::new([0; 32]));

/// What task B does before it goes.
pub(crate) mod handler {
    /// It has A go on behind the trial, not where it was.
    pub(crate) const SKIP: u32 = 1;
    /// It ends an interrupt.
    pub(crate) const END: u32 = 2;
    /// It jumps to A, and does not return to who has called it.
    pub(crate) const JUMP: u32 = 4;
    /// It sends itself an NMI first, once.
    pub(crate) const NMI: u32 = 8;
}

// 32 stubs of 16 bytes, then the three tasks' code. `note` writes one register down and destroys EBX.
global_asm!(
    ".code32",
    ".macro note register",
    "mov ebx, [{next}]",
    "mov [ebx], \\register",
    "add dword ptr [{next}], 4",
    ".endm",
    ".balign 16",
    "protected_stubs:",
    ".set protected_vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (protected_vector != 8) && (protected_vector != 17) && ((protected_vector < 10) || (protected_vector > 14))",
    ".byte 0x6a, 0",
    ".endif",
    ".byte 0x6a, protected_vector",
    "jmp protected_trapped",
    ".set protected_vector, protected_vector + 1",
    ".endr",
    // An exception by an interrupt gate: vector, error code, EIP, CS, EFLAGS, TR and for #DB DR6.
    "protected_trapped:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov eax, 0xe000",
    "or eax, [esp]",
    "note eax",
    "mov eax, [esp + 4]",
    "note eax",
    "mov eax, [esp + 8]",
    "sub eax, offset {body}",
    "note eax",
    "mov eax, [esp + 12]",
    "note eax",
    "mov eax, [esp + 16]",
    "note eax",
    "xor eax, eax",
    "str ax",
    "note eax",
    "cmp dword ptr [esp], 1",
    "jne 2f",
    "mov eax, dr6",
    "note eax",
    "mov eax, 0xffff0ff0",
    "mov dr6, eax",
    "2:",
    "xor eax, eax",
    "str ax",
    "cmp eax, 0x18",
    "je protected_back_in_a",
    "jmp protected_leave",
    // From a task that A has called: A is not to be returned to, but to go on.
    "protected_leave:",
    "mov dword ptr [{tss_a} + 0x20], offset protected_back_in_a",
    "and byte ptr [{gdt} + 0x18 + 5], 0xfd",
    ".byte 0xea",
    ".long 0",
    ".short 0x18",
    "jmp protected_leave",
    "protected_back_in_a:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov esp, [{stack_in_a}]",
    "ret",
    // Task B: flags, TR, CR0.TS, the link, whether A and B are busy, how much is on the stack, that, and what was saved of
    // A.
    "protected_task_b:",
    "pushfd",
    "pop ecx",
    "mov eax, 0xb000",
    "note eax",
    "note ecx",
    "xor eax, eax",
    "str ax",
    "note eax",
    "mov eax, cr0",
    "and eax, 8",
    "note eax",
    "movzx eax, word ptr [{tss_b}]",
    "note eax",
    "movzx eax, byte ptr [{gdt} + 0x18 + 5]",
    "note eax",
    "movzx eax, byte ptr [{gdt} + 0x20 + 5]",
    "note eax",
    "mov eax, offset {stack_b} + {stack_bytes}",
    "sub eax, esp",
    "note eax",
    "test eax, eax",
    "jz 2f",
    "pop eax",
    "note eax",
    "2:",
    "mov eax, [{tss_a} + 0x20]",
    "sub eax, offset {body}",
    "note eax",
    "mov eax, [{tss_a} + 0x24]",
    "note eax",
    "test dword ptr [{how}], 8",
    "jz 2f",
    "and dword ptr [{how}], 0xfffffff7",
    "mov dword ptr [0xfee00310], 0",
    "mov dword ptr [0xfee00300], 0x4400",
    "mov ecx, 2000",
    "3: pause",
    "dec ecx",
    "jnz 3b",
    "mov eax, 0xb0b0",
    "note eax",
    "2: test dword ptr [{how}], 2",
    "jz 2f",
    "mov dword ptr [0xfee000b0], 0",
    "2: test dword ptr [{how}], 1",
    "jz 2f",
    "mov dword ptr [{tss_a} + 0x20], offset protected_back_in_a",
    "2: test dword ptr [{how}], 4",
    "jz 2f",
    "and byte ptr [{gdt} + 0x18 + 5], 0xfd",
    ".byte 0xea",
    ".long 0",
    ".short 0x18",
    "jmp protected_task_b",
    "2: iretd",
    "jmp protected_task_b",
    // Task C, where its segments let it run: its registers, as they were loaded.
    "protected_task_c:",
    "mov [{next} + 4], ebx",
    "pushfd",
    "pop ebx",
    "mov [{next} + 8], ebx",
    "mov ebx, 0xc000",
    "xchg eax, ebx",
    "mov [{next} + 12], ebx",
    "note eax",
    "mov eax, [{next} + 8]",
    "note eax",
    "mov eax, [{next} + 12]",
    "note eax",
    "note ecx",
    "note edx",
    "note ebp",
    "note esi",
    "note edi",
    "mov eax, [{next} + 4]",
    "note eax",
    "mov eax, fs",
    "note eax",
    "sldt eax",
    "and eax, 0xffff",
    "note eax",
    "mov eax, cr3",
    "note eax",
    "iretd",
    "jmp protected_task_c",
    // Task D, of a 16-bit TSS: it uses no stack, and its code's base is here.
    ".balign 16",
    "protected_task_d:",
    "mov eax, 0xd000",
    "note eax",
    "xor eax, eax",
    "str ax",
    "note eax",
    "movzx eax, word ptr [{tss_d}]",
    "note eax",
    "movzx eax, cx",
    "note eax",
    "mov eax, fs",
    "and eax, 0xffff",
    "note eax",
    "iretd",
    "jmp protected_task_d",
    // 64-bit mode, RDI = CR3 for paging with PAE in protected mode, or 0: runs the body as task A.
    ".code64",
    "protected_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "cli",
    "mov [{saved_stack}], rsp",
    "sgdt [{before}]",
    "sidt [{before} + 16]",
    "lgdt [{tables}]",
    "mov r12, cr3",
    "push 8",
    "push offset protected_entered",
    ".byte 0x48, 0xcb",
    ".code32",
    "protected_entered:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov esp, offset {stack_a} + {stack_bytes}",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ebp, cr3",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "btr eax, 8",
    "wrmsr",
    "lidt [{tables} + 16]",
    "mov eax, 0x18",
    "ltr ax",
    "push ebp",
    "test edi, edi",
    "jz 2f",
    "mov cr3, edi",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    "2: call 3f",
    "pop ebp",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov cr3, ebp",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "bts eax, 8",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    "clts",
    ".byte 0xea",
    ".long protected_left",
    ".short 0x48",
    // The body ends with RET; what comes back otherwise has that address on its stack.
    "3: mov [{stack_in_a}], esp",
    "jmp {body}",
    ".code64",
    "protected_left:",
    "lgdt [{before}]",
    "lidt [{before} + 16]",
    "mov rsp, [{saved_stack}]",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "push 8",
    "push offset protected_done",
    ".byte 0x48, 0xcb",
    "protected_done:",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    next = sym NEXT,
    body = sym BODY,
    gdt = sym GDT,
    tss_a = sym TSS_A,
    tss_b = sym TSS_B,
    tss_d = sym TSS_D,
    stack_a = sym STACK_A,
    stack_b = sym STACK_B,
    stack_in_a = sym STACK_IN_A,
    saved_stack = sym SAVED_STACK,
    before = sym TABLES_BEFORE,
    tables = sym TABLES,
    how = sym HOW,
    stack_bytes = const STACK_BYTES,
);

unsafe extern "C" {
    fn protected_run(cr3: u64);
    fn protected_stubs();
    fn protected_task_b();
    fn protected_task_c();
    fn protected_task_d();
}

const fn segment(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 15) << 48
        | (flags as u64) << 52
        | (base >> 24) << 56
}

fn address<T>(place: &Place<T>) -> u32 {
    place.0.get() as u32
}

const fn task_gate(selector: u16) -> u64 {
    (selector as u64) << 16 | 0xe5 << 40
}

/// One trial: a body of 32-bit code, and what it meets.
pub(crate) struct Trial {
    pub(crate) body: [u8; 64],
    length: usize,
    /// What task B does.
    pub(crate) how: u32,
    /// The TSS of task C.
    pub(crate) task_c: Tss,
    /// Vectors with a task gate to B.
    pub(crate) gates: [u8; 6],
    /// A vector whose gate is not present.
    pub(crate) absent: Option<u8>,
    /// Paging with PAE, with its CR3.
    pub(crate) cr3: u32,
    /// Link back in A's TSS.
    pub(crate) link: u16,
}

impl Trial {
    pub(crate) fn new(body: &[u8]) -> Self {
        let mut bytes = [0xcc; 64];
        for (to, from) in bytes.iter_mut().zip(body.iter().chain(&[0xc3])) {
            *to = *from;
        }
        let mut task_c = task(protected_task_c as *const () as u32, end(&STACK_C));
        for (index, at) in (0x28..0x48).step_by(4).enumerate() {
            if at != 0x38 {
                put(&mut task_c, at, 0x1111_1111 * (index as u32 + 1));
            }
        }
        let gates = [0xff; 6];
        let length = body.len();
        Self { body: bytes, length, how: 0, task_c, gates, absent: None, cr3: 0, link: 0 }
    }

    /// With task gates for these vectors.
    pub(crate) fn by_task(mut self, vectors: &[u8], how: u32) -> Self {
        for (to, from) in self.gates.iter_mut().zip(vectors) {
            *to = *from;
        }
        self.how = how;
        self
    }

    /// Where task C has something else.
    pub(crate) fn with(mut self, at: usize, value: u32) -> Self {
        put(&mut self.task_c, at, value);
        self
    }

    pub(crate) fn run(&self) -> Seen {
        let stubs = protected_stubs as *const () as u32;
        let mut idt = [0; 128];
        for (vector, gate) in idt.iter_mut().enumerate().take(32) {
            let at = u64::from(stubs) + 16 * vector as u64;
            *gate = at & 0xffff | u64::from(CODE) << 16 | 0x8e << 40 | (at >> 16) << 48;
        }
        for vector in self.gates.iter().filter(|vector| **vector != 0xff) {
            idt[usize::from(*vector)] = task_gate(TASK_B);
        }
        if let Some(vector) = self.absent {
            idt[usize::from(vector)] &= !(0x80 << 40);
        }
        let mut tss_a = task(0, end(&STACK_A));
        tss_a.0[..2].copy_from_slice(&self.link.to_le_bytes());
        let mut tss_b = task(protected_task_b as *const () as u32, end(&STACK_B));
        for tss in [&mut tss_a, &mut tss_b] {
            put(tss, 0x1c, self.cr3);
        }
        let mut tables = [0; 32];
        for (at, base, limit) in [(0, address(&GDT), 0x7f_u16), (16, address(&IDT), 0x3ff)] {
            tables[at..at + 2].copy_from_slice(&limit.to_le_bytes());
            tables[at + 2..at + 6].copy_from_slice(&base.to_le_bytes());
        }
        let mut body = [0xcc; 256];
        body[..=self.length].copy_from_slice(&self.body[..=self.length]);
        set(&GDT, descriptors());
        set(&IDT, idt);
        set(&TSS_A, tss_a);
        set(&TSS_B, tss_b);
        set(&TSS_C, self.task_c);
        set(&TSS_D, task_d());
        set(&TABLES, tables);
        set(&BODY, body);
        set(&HOW, self.how);
        set(&NEXT, address(&NOTES));
        // SAFETY: whatever the body does leads back: its tables are those above.
        unsafe { protected_run(self.cr3.into()) };
        // SAFETY: nothing but the code before writes to it.
        let next = unsafe { NEXT.0.get().read_volatile() };
        // SAFETY: as above.
        let notes = unsafe { NOTES.0.get().read_volatile() };
        // SAFETY: as above.
        let c = unsafe { TSS_C.0.get().read_volatile() };
        Seen { count: (next - address(&NOTES)) as usize / 4, notes, c }
    }
}

fn descriptors() -> [u64; 16] {
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
fn task_d() -> Tss {
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

fn end(stack: &Stack) -> u32 {
    stack.0.get() as u32 + STACK_BYTES
}

fn set<T>(place: &Place<T>, value: T) {
    // SAFETY: one CPU, which runs no trial now.
    unsafe { place.0.get().write_volatile(value) };
}

fn put(tss: &mut Tss, at: usize, value: u32) {
    tss.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The TSS of a task that begins at `rip`.
fn task(rip: u32, stack: u32) -> Tss {
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

/// What a trial has written down.
pub(crate) struct Seen {
    count: usize,
    notes: [u32; 128],
    c: Tss,
}

impl Seen {
    /// Words of task C's TSS as they were left there.
    pub(crate) fn saved_in_c(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.c.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("nothing");
        }
        for note in self.notes.iter().take(self.count) {
            write!(f, "{note:x} ")?;
        }
        Ok(())
    }
}

/// CR3 for paging with PAE that maps what long mode's tables map.
pub(crate) fn pae_tables() -> [u32; 2] {
    #[repr(C, align(64))]
    struct Pointers(UnsafeCell<[[u64; 4]; 2]>);
    // SAFETY: one CPU uses it.
    unsafe impl Sync for Pointers {}
    static POINTERS: Pointers = Pointers(UnsafeCell::new([[0; 4]; 2]));
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let cr3: u64;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr3", out(reg) cr3) };
    let entry = |table: u64, index: u64| {
        let at = cpu::physical::pointer::<u64>(arch::Hpa::new((table & ADDRESS) + 8 * index));
        // SAFETY: the first 4 GiB are mapped onto themselves, the tables among them.
        unsafe { at.read_volatile() }
    };
    let pointers = entry(cr3, 0);
    let pointers = core::array::from_fn(|index| entry(pointers, index as u64) & ADDRESS | 1);
    // SAFETY: no trial is on.
    unsafe { POINTERS.0.get().write_volatile([pointers; 2]) };
    let at = POINTERS.0.get() as u32;
    [at, at + 32]
}
