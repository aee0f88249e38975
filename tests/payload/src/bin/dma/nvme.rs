//! As much of an NVMe controller's driver as it takes to make it read and write memory by DMA
//! (NVM Express Base Specification, "Controller Properties", "Identify command").

use core::cell::UnsafeCell;

use arch::Hpa;
use arch::machine::Width;
use cpu::instructions::tsc;
use cpu::physical::{mmio_read, mmio_write};

const VS: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
/// The admin queues' doorbells, for a stride of 0.
const SUBMISSION_TAIL: u64 = 0x1000;
const COMPLETION_HEAD: u64 = 0x1004;

const ENTRIES: u32 = 16;
const IDENTIFY: u32 = 0x06;
const IDENTIFY_CONTROLLER: u32 = 1;

/// A page that the controller may reach.
#[repr(align(4096))]
struct Page(UnsafeCell<[u32; 1024]>);
// SAFETY: one CPU uses it, and what the device writes is read as volatile.
unsafe impl Sync for Page {}

static SUBMISSIONS: Page = Page(UnsafeCell::new([0; 1024]));
static COMPLETIONS: Page = Page(UnsafeCell::new([0; 1024]));
static BUFFER: Page = Page(UnsafeCell::new([0; 1024]));

impl Page {
    /// Its address: the guest maps memory onto itself.
    fn address(&self) -> u64 {
        self.0.get() as u64
    }

    fn read(&self, word: usize) -> u32 {
        // SAFETY: the callers' words lie in the page.
        unsafe { self.0.get().cast::<u32>().wrapping_add(word).read_volatile() }
    }

    fn write(&self, word: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.0.get().cast::<u32>().wrapping_add(word).write_volatile(value) };
    }
}

pub(crate) struct Controller {
    /// Where its registers are.
    pub(crate) registers: Hpa,
    /// Commands given since it was enabled.
    given: u32,
}

impl Controller {
    pub(crate) fn new(registers: Hpa) -> Self {
        Self { registers, given: 0 }
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: the registers are those of the guest's own device.
        unsafe { mmio_read(self.registers.wrapping_add(offset), Width::Dword) as u32 }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: as above.
        unsafe { mmio_write(self.registers.wrapping_add(offset), Width::Dword, u64::from(value)) };
    }

    /// Its version register, which is constant.
    pub(crate) fn version(&self) -> u32 {
        self.read(VS)
    }

    /// Enables it again, with its queues in memory; whether it got ready.
    pub(crate) fn enable(&mut self) -> bool {
        self.enable_with(SUBMISSIONS.address())
    }

    /// Enables it again, with its submission queue at any address.
    pub(crate) fn enable_with(&mut self, submissions: u64) -> bool {
        self.given = 0;
        self.write(CC, 0);
        wait_until(|| self.read(CSTS) & 1 == 0);
        (0..1024).for_each(|word| COMPLETIONS.write(word, 0));
        self.write(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        for (register, address) in [(ASQ, submissions), (ACQ, COMPLETIONS.address())] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        // Entries of 16 and 64 bytes; enable.
        self.write(CC, 4 << 20 | 6 << 16 | 1);
        wait_until(|| self.read(CSTS) & 1 == 1)
    }

    /// Makes it fetch the next command, whatever lies there.
    pub(crate) fn ring(&mut self) {
        self.given += 1;
        self.write(SUBMISSION_TAIL, self.given % ENTRIES);
    }

    /// Tells it to write its description (a page) to any address. The status field of its answer; 0
    /// is success.
    pub(crate) fn identify_to(&mut self, address: u64) -> Option<u32> {
        let slot = (self.given % ENTRIES) as usize;
        let command = [IDENTIFY, 0, 0, 0, 0, 0, address as u32, (address >> 32) as u32, 0, 0];
        let command = command.into_iter().chain([IDENTIFY_CONTROLLER, 0, 0, 0, 0, 0]);
        for (word, value) in command.enumerate() {
            SUBMISSIONS.write(slot * 16 + word, value);
        }
        self.ring();
        // The phase bit turns 1 in the first round of the queue.
        let answer = slot * 4 + 3;
        let answered = wait_until(|| COMPLETIONS.read(answer) >> 16 & 1 == 1);
        self.write(COMPLETION_HEAD, self.given % ENTRIES);
        answered.then(|| COMPLETIONS.read(answer) >> 17)
    }

    /// The PCI vendor that its description begins with, fetched by DMA into the guest's memory.
    pub(crate) fn vendor_by_dma(&mut self) -> u32 {
        BUFFER.write(0, 0);
        let _ = self.identify_to(BUFFER.address());
        BUFFER.read(0) & 0xffff
    }
}

/// Polls for up to about two seconds of a 1–4 GHz counter.
pub(crate) fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = tsc();
    while tsc() - start < 4_000_000_000 {
        if done() {
            return true;
        }
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
    }
    false
}
