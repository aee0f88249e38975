//! The processors: each is taken over, the others are started one by one, and all then wait for jobs, which are
//! virtual CPUs.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};

use arch::{ApicId, Hpa};
use cpu::local_apic::LocalApic;
use cpu::segments::CpuTables;
use cpu::sleep;
use cpu::start::{StartPage, wait};
use guest::job::{JobSlot, Lock};
use spin::{Mutex, Once};

use crate::console::logln;
use crate::memory::{self, Memory};
use crate::refusal::Refusal;

/// A stack's size, its guard page apart.
const STACK: u64 = 32 << 10;

/// How long a processor may be silent …
const LONG_MS: u32 = 500;
/// … and how long once `MAX_AWAITED` have been silent: firmware may list processors that do not exist.
const SHORT_MS: u32 = 50;
const MAX_AWAITED: u32 = 4;

/// What a processor is given to do.
pub(crate) type Job = Box<dyn FnOnce(&Processor) + Send>;

/// The processor that runs this.
pub(crate) struct Processor {
    pub(crate) apic: LocalApic,
    /// Linear address of its TSS.
    pub(crate) tss_base: u64,
}

impl Processor {
    /// Makes the processor that calls the hypervisor's: descriptor tables, local APIC in x2APIC mode, extended
    /// state usable.
    pub(crate) fn take_over(memory: Memory) -> Result<Self, Refusal> {
        let tss_base = load_cpu_tables(memory)?;
        // SAFETY: ring 0, with the hypervisor's own page table, which has no user pages.
        unsafe { cpu::host_state::set_cr4() };
        // SAFETY: ring 0, and no guest runs yet.
        unsafe { cpu::speculation::prepare() };
        // SAFETY: ring 0 with interrupts off; nobody else drives this local APIC.
        let apic = unsafe { LocalApic::enable() }.ok_or_else(plan::platform::no_x2apic)?;
        Ok(Self { apic, tss_base })
    }

    /// The same of a processor that has just been started.
    fn arrive() -> Result<Self, Refusal> {
        cpu::exceptions::use_own_stacks(false);
        memory::use_own_table()?;
        // SAFETY: ring 0; this CPU has taken no time yet.
        unsafe { cpu::clock::take_tsc_adjustment_off() };
        Self::take_over(Memory::handle())
    }
}

fn load_cpu_tables(memory: Memory) -> Result<u64, Refusal> {
    // For a double fault, and for a machine check.
    const OWN_STACK: u64 = 8 << 10;
    let end = memory.frames(2 * OWN_STACK)?.range().end().as_u64();
    let tables = Box::leak(Box::new(CpuTables::new(end - OWN_STACK, end)));
    let tss_base = tables.tss_base();
    tables.load();
    cpu::exceptions::use_own_stacks(true);
    Ok(tss_base)
}

/// Nothing has been heard of a processor.
const SILENT: u8 = 0;
/// It runs our code, and may hold locks.
const ARRIVED: u8 = 1;
/// It waits for jobs.
const READY: u8 = 2;
/// It is left out: it lacks something, or came too late. One that finds this at its arrival halts.
const LEFT_OUT: u8 = 3;

/// A processor's mailbox: its state, and the job that it is given.
struct Mailbox {
    id: ApicId,
    /// How far its start has come.
    state: AtomicU8,
    /// Which kind of core it is.
    kind: AtomicU8,
    jobs: JobSlot<SpinLock>,
}

#[derive(Default)]
struct SpinLock(Mutex<Option<Job>>);

impl Lock<Option<Job>> for SpinLock {
    fn locked<R>(&self, work: impl FnOnce(&mut Option<Job>) -> R) -> R {
        work(&mut self.0.lock())
    }
}

static MAILBOXES: Once<Vec<Mailbox>> = Once::new();

/// Starts every processor of `ids` but `own`. One that does not answer is left out, with a line in
/// the log; returns those that answered.
pub(crate) fn start(
    memory: Memory,
    page: Option<Hpa>,
    ids: &[ApicId],
    own: ApicId,
    tsc_khz: u64,
) -> Result<Vec<ApicId>, Refusal> {
    let mailboxes = MAILBOXES.call_once(|| {
        ids.iter()
            .map(|id| Mailbox {
                id: *id,
                state: AtomicU8::new(SILENT),
                kind: AtomicU8::new(0),
                jobs: JobSlot::new(SpinLock::default()),
            })
            .collect()
    });
    say_kind(mailboxes.iter().find(|mailbox| mailbox.id == own));
    let mut answered = Vec::from([own]);
    if ids.len() <= 1 {
        return Ok(answered);
    }
    let Some(page) = page else {
        logln!(
            "the memory map has no two free pages below 640 KiB, at which other CPUs could start: {} are left out",
            ids.len() - 1
        );
        return Ok(answered);
    };
    // SAFETY: the page was kept out of the free memory for this.
    let mut start_page = unsafe { StartPage::new(page) };
    let root = memory::copy_root_below_4_gib(memory)?;
    memory::make_executable(memory, start_page.code())?;
    // Each that is silent takes its time, and none says beforehand that it will be.
    logln!("other CPUs are started, one by one: {}", ids.len().saturating_sub(1));
    let mut silent = 0;
    for (index, mailbox) in mailboxes.iter().enumerate().filter(|(_, mailbox)| mailbox.id != own) {
        let stack = memory::stack(memory, STACK)?;
        start_page.prepare(root, stack, entry, index as u64);
        // SAFETY: this CPU is in x2APIC mode; nobody uses the other; the page is prepared.
        unsafe { start_page.start(mailbox.id, tsc_khz) };
        let patience_ms = if silent < MAX_AWAITED { LONG_MS } else { SHORT_MS };
        if wait_for_answer(mailbox, patience_ms, tsc_khz) {
            answered.push(mailbox.id);
        } else {
            silent += 1;
            leave_out(mailbox, &start_page, tsc_khz);
            logln!("CPU with APIC identifier {} does not start: it is left out", mailbox.id);
        }
    }
    memory::make_writable(memory, start_page.code())?;
    logln!("{} CPUs", answered.len());
    Ok(answered)
}

/// Records in the mailbox which kind of core the calling processor is.
fn say_kind(mailbox: Option<&Mailbox>) {
    if let Some(mailbox) = mailbox {
        let kind = banner::kind(cpu::instructions::cpuid);
        mailbox.kind.store(kind, Ordering::Relaxed);
    }
}

/// The kinds of the processors with these identifiers.
pub(crate) fn kinds(ids: &[ApicId]) -> Vec<u8> {
    ids.iter()
        .filter_map(|id| mailbox(*id))
        .map(|mailbox| mailbox.kind.load(Ordering::Relaxed))
        .collect()
}

/// Waits until the processor is ready (`true`) or left out, or has been silent for `patience_ms`.
fn wait_for_answer(mailbox: &Mailbox, patience_ms: u32, tsc_khz: u64) -> bool {
    // What has arrived does a bounded amount of work.
    const MAX_MS: u32 = 10_000;
    for waited_ms in 0..MAX_MS {
        match mailbox.state.load(Ordering::Acquire) {
            READY => return true,
            LEFT_OUT => return false,
            SILENT if waited_ms >= patience_ms => return false,
            _ => wait(tsc_khz, 1000),
        }
    }
    false
}

/// Sees to it that a silent processor stays out: if it came later it would take the next one's start parameters for
/// its own, and the two would share a stack. One that has arrived may hold a lock and is let be.
fn leave_out(mailbox: &Mailbox, start_page: &StartPage, tsc_khz: u64) {
    let silent =
        mailbox.state.compare_exchange(SILENT, LEFT_OUT, Ordering::AcqRel, Ordering::Acquire);
    if silent.is_ok() {
        // SAFETY: this CPU is in x2APIC mode, and the other has nothing that anybody waits for.
        unsafe { start_page.stop(mailbox.id, tsc_khz) };
    }
}

/// Where a processor goes on from the start page, with its index.
extern "C" fn entry(index: u64) -> ! {
    let Some(mailbox) = MAILBOXES.get().and_then(|mailboxes| mailboxes.get(index as usize)) else {
        cpu::instructions::halt_forever()
    };
    let arrived =
        mailbox.state.compare_exchange(SILENT, ARRIVED, Ordering::AcqRel, Ordering::Acquire);
    if arrived.is_err() {
        cpu::instructions::halt_forever()
    }
    match Processor::arrive() {
        Ok(processor) => {
            say_kind(Some(mailbox));
            mailbox.state.store(READY, Ordering::Release);
            work(&processor, |seen| {
                // SAFETY: the handlers are installed, interrupts are off, and no guest runs here now.
                unsafe { sleep::sleep(seen, false) };
            })
        }
        Err(refusal) => {
            logln!("CPU {index}: {refusal}");
            mailbox.state.store(LEFT_OUT, Ordering::Release);
            cpu::instructions::halt_forever()
        }
    }
}

/// Does jobs, for ever, and waits for the next. `wait` returns no later than with the next NMI after as many as it is
/// told have come.
pub(crate) fn work(processor: &Processor, wait: impl Fn(u32)) -> ! {
    let Some(mailbox) = mailbox(processor.apic.id()) else { cpu::instructions::halt_forever() };
    loop {
        let seen = sleep::nmis();
        match mailbox.jobs.take() {
            Some(job) => {
                // The boot's code may have become free memory since this processor last ran.
                memory::drop_translations();
                job(processor);
            }
            None => wait(seen),
        }
    }
}

fn mailbox(id: ApicId) -> Option<&'static Mailbox> {
    MAILBOXES.get()?.iter().find(|mailbox| mailbox.id == id)
}

/// Gives the processor with this identifier its job, and wakes it.
pub(crate) fn assign(id: ApicId, job: Job) {
    if let Some(mailbox) = mailbox(id) {
        mailbox.jobs.give(job);
        LocalApic::current().send_nmi(id);
    }
}

/// Takes back the job that the processor with this identifier was given and has not begun.
pub(crate) fn withdraw(id: ApicId) {
    if let Some(mailbox) = mailbox(id) {
        mailbox.jobs.withdraw();
    }
}

/// Whether the processor with this identifier has a job.
pub(crate) fn is_busy(id: ApicId) -> bool {
    mailbox(id).is_some_and(|mailbox| mailbox.jobs.is_busy())
}

/// The processors that have a job.
pub(crate) fn busy() -> impl Iterator<Item = ApicId> {
    MAILBOXES
        .get()
        .into_iter()
        .flatten()
        .filter(|mailbox| mailbox.jobs.is_busy())
        .map(|mailbox| mailbox.id)
}
