//! The log on the screen, under a lock of its own: pixels are slow, and only who logs waits for them.

use core::fmt;

use arch::address::HpaRange;
use boot::Framebuffer;
use spin::Mutex;

use super::logln;
use super::output::STATE;
use crate::display::{self, Display};

pub(super) static SCREEN: Mutex<Option<Display>> = Mutex::new(None);

/// From now on the log is shown on the screen too, with what it has so far.
///
/// # Safety
/// As [`Display::new`].
pub(crate) unsafe fn show_on(framebuffer: Option<Result<Framebuffer, &'static str>>) {
    match framebuffer {
        None => {}
        Some(Err(why)) => logln!("no text on the screen: the loader's framebuffer {why}"),
        Some(Ok(framebuffer)) => {
            // SAFETY: the caller vouches for it.
            let display = unsafe { Display::new(&framebuffer) };
            if display.is_none() {
                let start = framebuffer.start;
                logln!("no text on the screen: the framebuffer at {start} has no room or no place");
            }
            *SCREEN.lock() = display;
            // Only this CPU logs yet.
            STATE.lock().log.lines().for_each(|line| put(format_args!("{line}\n")));
        }
    }
}

/// Shows a line of the log.
pub(super) fn show(text: fmt::Arguments<'_>) {
    if let Some(display) = &mut *SCREEN.lock() {
        mux::own_text(mux::LOG, text, &mut |byte| display.put(byte));
    }
}

/// Shows text as it is.
fn put(text: fmt::Arguments<'_>) {
    if let Some(display) = &mut *SCREEN.lock() {
        // The bytes of a line go to the screen without fail.
        let _ = fmt::write(&mut Shown(display), text);
    }
}

struct Shown<'a>(&'a mut Display);

impl fmt::Write for Shown<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.0.put(byte));
        Ok(())
    }
}

/// Goes on to show the log, now in the hypervisor's own page table, where `map` maps the screen.
pub(crate) fn map_screen(map: impl FnOnce(HpaRange) -> bool) {
    // Taken out, as mapping may log.
    let display = SCREEN.lock().take();
    let display = display.filter(|display| map(display.range()));
    *SCREEN.lock() = display;
}

/// Shows nothing more on the screen, which `leave` may then map otherwise.
pub(crate) fn leave_screen(leave: impl FnOnce(HpaRange)) {
    // Taken out, as for mapping.
    let display = SCREEN.lock().take();
    if let Some(display) = display {
        leave(display.range());
    }
}

/// Whether the log is shown on the screen.
pub(crate) fn on_screen() -> bool {
    SCREEN.lock().is_some()
}

/// Where pixels were what failed, what is said about that must not fail again.
pub(super) fn leave_if_failed() {
    if display::failed() {
        *SCREEN.lock() = None;
    }
}
