//! The other processors: started one by one at bring-up, each then waits for the one job that it
//! will ever have, a virtual CPU.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arch::{ApicId, Hpa};
use cpu::local_apic::LocalApic;
use cpu::start::{StartPage, wait};
use spin::{Mutex, Once};

use crate::bring_up;
use crate::console::logln;
use crate::memory::{self, Memory};
use crate::refusal::Refusal;

/// A stack's size, its guard page apart.
const STACK: u64 = 32 << 10;

/// What a processor does for the rest of the run.
pub(crate) type Job = Box<dyn FnOnce(&Processor) + Send>;

/// The processor that runs this.
pub(crate) struct Processor {
    pub(crate) apic: LocalApic,
    /// Linear address of its TSS.
    pub(crate) tss_base: u64,
}

/// A processor's desk.
struct Desk {
    id: ApicId,
    job: Mutex<Option<Job>>,
    /// It has a job, or runs one.
    busy: AtomicBool,
}

static DESKS: Once<Vec<Desk>> = Once::new();
static STARTED: AtomicU32 = AtomicU32::new(0);

/// Starts every processor of `ids` but `own`. One that does not answer is left out, with a line in
/// the log; returns those that answered.
pub(crate) fn start(
    memory: Memory,
    page: Option<Hpa>,
    ids: &[ApicId],
    own: ApicId,
    tsc_khz: u64,
) -> Result<Vec<ApicId>, Refusal> {
    let desks = DESKS.call_once(|| {
        ids.iter()
            .map(|id| Desk { id: *id, job: Mutex::new(None), busy: AtomicBool::new(false) })
            .collect()
    });
    let mut answered = Vec::from([own]);
    let Some(page) = page.filter(|_| ids.len() > 1) else { return Ok(answered) };
    // SAFETY: the page was kept out of the free memory for this.
    let mut start_page = unsafe { StartPage::new(page) };
    let root = memory::copy_root_below_4_gib(memory)?;
    memory::make_executable(memory, start_page.code())?;
    for (index, desk) in desks.iter().enumerate().filter(|(_, desk)| desk.id != own) {
        let stack = memory::stack(memory, STACK)?;
        start_page.prepare(root, stack, entry, index as u64);
        let before = STARTED.load(Ordering::Acquire);
        // SAFETY: this CPU is in x2APIC mode; nobody uses the other; the page is prepared.
        unsafe { start_page.start(desk.id, tsc_khz) };
        if wait_for_answer(before, tsc_khz) {
            answered.push(desk.id);
        } else {
            logln!("CPU with APIC identifier {} does not start: it is left out", desk.id);
        }
    }
    memory::make_writable(memory, start_page.code())?;
    logln!("{} CPUs", answered.len());
    Ok(answered)
}

fn wait_for_answer(before: u32, tsc_khz: u64) -> bool {
    const MOST_WAITS: u32 = 500;
    for _ in 0..MOST_WAITS {
        if STARTED.load(Ordering::Acquire) != before {
            return true;
        }
        wait(tsc_khz, 1000);
    }
    false
}

/// Where a processor goes on from the start page, with its index.
extern "C" fn entry(index: u64) -> ! {
    match bring_up::this_cpu() {
        Ok(processor) => {
            STARTED.fetch_add(1, Ordering::Release);
            work(&processor);
        }
        Err(refusal) => {
            logln!("CPU {index}: {refusal}");
            cpu::instructions::halt_forever()
        }
    }
}

/// Waits for jobs, for ever.
fn work(processor: &Processor) -> ! {
    loop {
        if let Some(job) = take_job(processor.apic.id()) {
            job(processor);
        }
        // SAFETY: the handlers are installed, and no guest runs here now.
        unsafe { processor.apic.nap() };
    }
}

fn desk(id: ApicId) -> Option<&'static Desk> {
    DESKS.get()?.iter().find(|desk| desk.id == id)
}

/// Gives the processor with this identifier its job.
pub(crate) fn assign(id: ApicId, job: Job) {
    if let Some(desk) = desk(id) {
        desk.busy.store(true, Ordering::Release);
        *desk.job.lock() = Some(job);
    }
}

/// Takes the job that the processor with this identifier was given.
pub(crate) fn take_job(id: ApicId) -> Option<Job> {
    desk(id)?.job.lock().take()
}

/// Whether the processor with this identifier has a job.
pub(crate) fn is_busy(id: ApicId) -> bool {
    desk(id).is_some_and(|desk| desk.busy.load(Ordering::Acquire))
}

/// Says whether it has.
pub(crate) fn set_busy(id: ApicId, busy: bool) {
    if let Some(desk) = desk(id) {
        desk.busy.store(busy, Ordering::Release);
    }
}
