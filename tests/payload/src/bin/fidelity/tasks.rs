//! Hardware task switches: what is saved and loaded, what nests, and whose fault a fault is.

use cpu::physical::pointer;
use payload::is_kvms_guest;

use crate::fact;
use crate::protected::{
    CODE_ABSENT, CODE_SHORT, DATA, DATA_ABSENT, GATE_B, Placeless, READ_ONLY, TASK_A, TASK_ABSENT,
    TASK_B, TASK_C, TASK_D, TASK_SHORT, Trial, handler, pae_tables,
};

const fn far(opcode: u8, selector: u16) -> [u8; 7] {
    let [low, high] = selector.to_le_bytes();
    [opcode, 0, 0, 0, 0, low, high]
}

const fn call(selector: u16) -> [u8; 7] {
    far(0x9a, selector)
}

const fn jump(selector: u16) -> [u8; 7] {
    far(0xea, selector)
}

/// PUSHFD; OR [ESP], NT; POPFD; IRETD.
const RETURN_NESTED: [u8; 10] = [0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0xcf];
/// MOV EAX, 0x1238; MOV DS, EAX.
const BAD_SELECTOR: [u8; 7] = [0xb8, 0x38, 0x12, 0, 0, 0x8e, 0xd8];

/// MOV [0xFEE00300], `low`; STI; NOP; CLI.
const fn send(low: u16) -> [u8; 13] {
    let [low, high] = low.to_le_bytes();
    [0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, low, high, 0x04, 0x00, 0xfb, 0x90, 0xfa]
}

pub(crate) fn all() {
    switches();
    by_the_idt();
    faults_before();
    faults_behind();
    paging();
    virtual_8086();
    debugging();
}

fn switches() {
    fact!("task: CALL"; "{}", Trial::new(&call(TASK_B)).run());
    fact!("task: CALL by a task gate"; "{}", Trial::new(&call(GATE_B)).run());
    let jumps = || Trial::new(&jump(TASK_B)).by_task(&[], handler::JUMP);
    fact!("task: JMP, and JMP back"; "{}", jumps().run());
    fact!("task: JMP by a task gate"; "{}", Trial::new(&jump(GATE_B)).by_task(&[], handler::JUMP).run());
    fact!("task: CALL, what is loaded"; "{}", Trial::new(&call(TASK_C)).run());
    let twice = [call(TASK_B), call(TASK_B)].concat_in_place();
    fact!("task: CALL twice, the second behind IRET"; "{}", Trial::new(&twice).run());
    // KVM saves a task in the format of the one that it switches to, and is left with flags that no CPU takes.
    if !is_kvms_guest() {
        fact!("task: CALL to a 16-bit task"; "{}", Trial::new(&call(TASK_D)).run());
    }
    let trap = Trial::new(&call(TASK_C)).with(0x64, 0x68_0001);
    fact!("task: the debug trap bit"; "{}", trap.run());
}

trait Concat {
    fn concat_in_place(self) -> [u8; 14];
}

impl Concat for [[u8; 7]; 2] {
    fn concat_in_place(self) -> [u8; 14] {
        let mut all = [0; 14];
        all[..7].copy_from_slice(&self[0]);
        all[7..].copy_from_slice(&self[1]);
        all
    }
}

fn by_the_idt() {
    fact!("task: INT n by a task gate"; "{}", Trial::new(&[0xcd, 0x40]).by_task(&[0x40], 0).run());
    fact!("task: INT3 by a task gate"; "{}", Trial::new(&[0xcc]).by_task(&[3], 0).run());
    let skip = handler::SKIP;
    fact!("task: #UD by a task gate"; "{}", Trial::new(&[0x0f, 0x0b]).by_task(&[6], skip).run());
    fact!("task: #GP by a task gate"; "{}", Trial::new(&BAD_SELECTOR).by_task(&[13], skip).run());
    let mut double = Trial::new(&BAD_SELECTOR).by_task(&[8], skip);
    double.absent = Some(13);
    fact!("task: #DF by a task gate"; "{}", double.run());
    let interrupt = Trial::new(&send(0x41)).by_task(&[0x41], handler::END);
    fact!("task: an interrupt by a task gate"; "{}", interrupt.run());
    fact!("task: the same again"; "{}", interrupt.run());
    let nmi = Trial::new(&nmi()).by_task(&[2], 0);
    fact!("task: NMI by a task gate"; "{}", nmi.run());
    let nmi = Trial::new(&self::nmi()).by_task(&[2], handler::NMI);
    fact!("task: NMI by a task gate, and one more in its task"; "{}", nmi.run());
}

/// MOV [0xFEE00310], 0; MOV [0xFEE00300], 0x4400; MOV ECX, 2000; LOOP.
fn nmi() -> [u8; 27] {
    [
        0xc7, 0x05, 0x10, 0x03, 0xe0, 0xfe, 0, 0, 0, 0, 0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00,
        0x44, 0, 0, 0xb9, 0xd0, 0x07, 0, 0, 0xe2, 0xfe,
    ]
}

fn faults_before() {
    for (name, selector) in [
        ("that is busy", TASK_A),
        ("that is not present", TASK_ABSENT),
        ("that is too short", TASK_SHORT),
        ("beyond the GDT", 0x1238),
    ] {
        fact!("task: CALL to a TSS {name}"; "{}", Trial::new(&call(selector)).run());
        fact!("task: JMP to a TSS {name}"; "{}", Trial::new(&jump(selector)).run());
    }
    for (name, link) in [
        ("null", 0),
        ("to a TSS that is not busy", TASK_B),
        ("to a data segment", DATA),
        ("beyond the GDT", 0x1238),
        ("into the LDT", TASK_B | 4),
    ] {
        let mut trial = Trial::new(&RETURN_NESTED);
        trial.link = link;
        fact!("task: IRET with a link {name}"; "{}", trial.run());
    }
}

fn faults_behind() {
    for (name, at, value) in [
        ("LDT is a data segment", 0x60, u32::from(DATA)),
        ("LDT is beyond the GDT", 0x60, 0x1238),
        ("CS is null", 0x4c, 0),
        ("CS is a data segment", 0x4c, DATA.into()),
        ("CS is not present", 0x4c, CODE_ABSENT.into()),
        ("CS has an RPL of 3", 0x4c, 8 | 3),
        ("EIP is beyond CS", 0x4c, CODE_SHORT.into()),
        ("SS is null", 0x50, 0),
        ("SS is read-only", 0x50, READ_ONLY.into()),
        ("SS is not present", 0x50, DATA_ABSENT.into()),
        ("SS has an RPL of 3", 0x50, u32::from(DATA) | 3),
        ("DS is not present", 0x54, DATA_ABSENT.into()),
        ("ES is a TSS", 0x48, TASK_B.into()),
        ("FS is beyond the GDT", 0x58, 0x1238),
        ("GS is in an LDT that is not", 0x5c, 0xc),
    ] {
        let gates = [10, 11, 12, 13];
        let trial = Trial::new(&call(TASK_C)).by_task(&gates, handler::JUMP | handler::SKIP);
        let seen = trial.with(at, value).run();
        let [flags, link] = [0x24, 0].map(|at| seen.saved_in_c(at));
        let eip = seen.place_in_c();
        fact!("task: CALL to a task whose {name}"; "{seen}, then C has {eip:x} {flags:x} {link:x}");
    }
}

fn paging() {
    let [own, of_c] = pae_tables();
    let mut trial = Trial::new(&call(TASK_C)).with(0x1c, of_c);
    trial.cr3 = own;
    fact!("task: CALL with paging"; "{}", trial.run());
    let mut trial = Trial::new(&call(TASK_B));
    trial.cr3 = own;
    fact!("task: CALL with paging, to a task that says what it sees"; "{}", trial.run());
}

/// PUSHFD; TF in it; POPFD; `code`; NOPs.
fn stepped(code: &[u8]) -> [u8; 18] {
    let mut all = [0x90; 18];
    all[..7].copy_from_slice(&[0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d]);
    all[7..7 + code.len()].copy_from_slice(code);
    all
}

/// Single steps over a switch and into a task, the debug trap bit with them, and what is left of the local breakpoints.
fn debugging() {
    // Back in A, TF is set: #DB comes behind one of the NOPs. No debug trap bit with a task gate for #DB: Bochs ends there.
    fact!("task: a single step over CALL"; "{}", Placeless(Trial::new(&stepped(&call(TASK_B))).run()));
    fact!("task: a single step over CALL by a task gate"; "{}", Placeless(Trial::new(&stepped(&call(GATE_B))).run()));
    fact!("task: a single step over JMP"; "{}",
        Placeless(Trial::new(&stepped(&jump(TASK_B))).by_task(&[], handler::JUMP).run()));
    fact!("task: a single step over INT n by a task gate"; "{}",
        Placeless(Trial::new(&stepped(&[0xcd, 0x40])).by_task(&[0x40], 0).run()));
    fact!("task: a single step over #UD by a task gate"; "{}",
        Placeless(Trial::new(&stepped(&[0x0f, 0x0b])).by_task(&[6], handler::SKIP).run()));
    fact!("task: a single step by a task gate"; "{}",
        Placeless(Trial::new(&stepped(&[0x9c, 0x80, 0x64, 0x24, 1, 0xfe, 0x9d])).by_task(&[1], 0).run()));
    let both = || Trial::new(&call(TASK_C)).with(0x24, 0x102);
    fact!("task: CALL to a task with TF"; "{}", Placeless(both().run()));
    fact!("task: CALL to a task with TF and the debug trap bit"; "{}", Placeless(both().with(0x64, 0x68_0001).run()));
    fact!("task: a single step over CALL to a task with the debug trap bit"; "{}",
        Placeless(Trial::new(&stepped(&call(TASK_C))).with(0x64, 0x68_0001).run()));
    fact!("task: the debug trap bit, and a fault of the task"; "{}",
        Placeless(Trial::new(&call(TASK_C)).with(0x64, 0x68_0001).with(0x54, DATA_ABSENT.into()).run()));
    // MOV EAX, value; MOV DR7, EAX; CALL; MOV EAX, DR7. Nothing lies at the breakpoints: they are at 0.
    let code = |value: u32| {
        let mut code = [0; 18];
        code[0] = 0xb8;
        code[1..5].copy_from_slice(&value.to_le_bytes());
        code[5..8].copy_from_slice(&[0x0f, 0x23, 0xf8]);
        code[8..15].copy_from_slice(&call(TASK_B));
        code[15..].copy_from_slice(&[0x0f, 0x21, 0xf8]);
        code
    };
    for value in [0x455, 0x4aa, 0x7ff, 0x1111_0700] {
        fact!("task: DR7 = {value:x} behind CALL and IRET"; "{}", Placeless(Trial::new(&code(value)).telling().run()));
        Trial::new(&code(0x400)).run();
    }
}

/// Where a piece of real-mode code can lie.
const LOW: u64 = 0x7000;

fn virtual_8086() {
    let low = pointer::<[u8; 16]>(arch::Hpa::new(LOW));
    // SAFETY: RAM that nothing but the loader has used.
    let before = unsafe { low.read_volatile() };
    // HLT, which is #GP there.
    // SAFETY: as above; it is put back.
    unsafe { low.write_volatile([0xf4; 16]) };
    let mut trial = Trial::new(&call(TASK_C)).with(0x20, 5).with(0x24, 0x2_0002);
    for at in (0x48..0x60).step_by(4) {
        trial = trial.with(at, (LOW >> 4) as u32);
    }
    let seen = trial.with(0x38, 0xff0).run();
    // SAFETY: as above.
    unsafe { low.write_volatile(before) };
    fact!("task: CALL to a task in virtual-8086 mode"; "{seen}");
}
