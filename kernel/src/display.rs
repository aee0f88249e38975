//! Text on the loader's framebuffer: [`screen`]'s pixels, written to the memory that holds them.

use arch::address::HpaRange;
use boot::Framebuffer;
use core::sync::atomic::{AtomicBool, Ordering};
use cpu::physical;
use screen::{Geometry, Pixels, Screen};

/// Pixels are being written. If this is set after a fault, the framebuffer caused it.
static WRITING: AtomicBool = AtomicBool::new(false);

/// A screen that the hypervisor writes on.
pub(crate) struct Display {
    screen: Screen,
    memory: Target,
    range: HpaRange,
}

/// The framebuffer's memory.
struct Target(HpaRange);

impl Display {
    /// Makes the screen black; `None` where no text fits, or the framebuffer cannot be reached yet.
    ///
    /// # Safety
    /// The framebuffer is memory of a device and nobody else's, and the page table is still that of
    /// `boot::entry`.
    pub(crate) unsafe fn new(framebuffer: &Framebuffer) -> Option<Self> {
        let range = framebuffer.range();
        let geometry = Geometry {
            width: framebuffer.width,
            height: framebuffer.height,
            pitch: framebuffer.pitch,
            bytes_per_pixel: framebuffer.bytes_per_pixel,
        };
        let screen = Screen::new(geometry)?;
        // SAFETY: the caller vouches for the page table.
        if !unsafe { boot::entry::map_device(range) } {
            return None;
        }
        let mut display = Self { screen, memory: Target(range), range };
        display.screen.clear(&mut display.memory);
        Some(display)
    }

    /// Shows a byte of text.
    pub(crate) fn put(&mut self, byte: u8) {
        WRITING.store(true, Ordering::Relaxed);
        self.screen.put(byte, &mut self.memory);
        if byte == b'\n' {
            // Lets go of what was gathered (SDM "Store Fence"): the CPU may halt next.
            // SAFETY: orders memory, and does nothing else.
            unsafe { core::arch::asm!("sfence", options(nostack, preserves_flags)) };
        }
        WRITING.store(false, Ordering::Relaxed);
    }

    /// Where the framebuffer is.
    pub(crate) const fn range(&self) -> HpaRange {
        self.range
    }
}

/// Whether a fault came while pixels were written; said once.
pub(crate) fn failed() -> bool {
    WRITING.swap(false, Ordering::Relaxed)
}

impl Pixels for Target {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let inside = (offset as u64).checked_add(bytes.len() as u64);
        if inside.is_none_or(|end| end > self.0.length) {
            return;
        }
        let mut at = self.0.start.wrapping_add(offset as u64);
        // By words, as each write to uncached memory goes to the device alone.
        let words =
            if at.as_u64().is_multiple_of(4) { bytes.chunks_exact(4) } else { [].chunks_exact(4) };
        let rest = if at.as_u64().is_multiple_of(4) { words.remainder() } else { bytes };
        for word in words {
            let value = word.try_into().map_or(0, u32::from_le_bytes);
            // SAFETY: inside the framebuffer, which is mapped; aligned.
            unsafe { physical::pointer::<u32>(at).write_volatile(value) };
            at = at.wrapping_add(4);
        }
        for byte in rest {
            // SAFETY: inside the framebuffer, which is mapped.
            unsafe { physical::pointer::<u8>(at).write_volatile(*byte) };
            at = at.wrapping_add(1);
        }
    }
}
