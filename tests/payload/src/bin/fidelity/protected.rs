//! Out of long mode and back: a piece of 32-bit code in protected mode, with tables and tasks of its own, that writes down
//! what it sees.
//!
//! Task A runs the code. B is the task behind task gates; C is one whose TSS a trial makes; D has a 16-bit TSS.

use core::cell::UnsafeCell;
use core::fmt;

use crate::trap::Place;
pub(crate) use paging::pae_tables;
use tables::{descriptors, put, task, task_d, task_gate};

mod code;
mod entry;
mod paging;
mod tables;

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

unsafe extern "C" {
    fn protected_run(cr3: u64);
    fn protected_stubs();
    fn protected_task_b();
    fn protected_task_c();
    fn protected_task_d();
}

fn address<T>(place: &Place<T>) -> u32 {
    place.0.get() as u32
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

    /// And then it writes EAX down: MOV EBX, [NEXT]; MOV [EBX], EAX; ADD [NEXT], 4.
    pub(crate) fn telling(mut self) -> Self {
        let next = address(&NEXT).to_le_bytes();
        let code = [0x8b, 0x1d, 0, 0, 0, 0, 0x89, 0x03, 0x83, 0x05, 0, 0, 0, 0, 4, 0xc3];
        let end = self.length;
        self.body[end..end + 16].copy_from_slice(&code);
        self.body[end + 2..end + 6].copy_from_slice(&next);
        self.body[end + 10..end + 14].copy_from_slice(&next);
        self.length += 15;
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

fn end(stack: &Stack) -> u32 {
    stack.0.get() as u32 + STACK_BYTES
}

fn set<T>(place: &Place<T>, value: T) {
    // SAFETY: one CPU, which runs no trial now.
    unsafe { place.0.get().write_volatile(value) };
}

/// What a trial has written down.
pub(crate) struct Seen {
    count: usize,
    notes: [u32; 128],
    c: Tss,
}

impl Seen {
    /// EIP there, from the task's first instruction on.
    pub(crate) fn place_in_c(&self) -> u32 {
        self.saved_in_c(0x20).wrapping_sub(protected_task_c as *const () as u32)
    }

    /// Words of task C's TSS as they were left there.
    pub(crate) fn saved_in_c(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.c.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }
}

/// The same, and instruction pointers in the payload's own code as that: where it lies a compiler decides.
pub(crate) struct Placeless(pub(crate) Seen);

impl fmt::Display for Placeless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As offsets from the body; DR6 is above.
        const OWN: core::ops::Range<u32> = 0xff00_0000..0xffff_0000;
        for note in self.0.notes.iter().take(self.0.count) {
            if OWN.contains(note) { write!(f, "own ")? } else { write!(f, "{note:x} ")? }
        }
        Ok(())
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
