//! What is typed: looked for by any CPU that comes by, under a lock that nobody waits with, and kept for the guest until it
//! takes it.

use mux::line::Keys;
use mux::queue::Owner;
use mux::{Command, Input, Mux, Typed, Waiting};
use spin::Mutex;

use super::Uart;
use super::output::{STATE, State, send, speak};

/// Maximum number of guests that can be typed to.
const MAX_GUESTS: usize = 8;
/// Keys taken in one go, of frames too; a line brings far fewer between two looks.
const MAX_KEYS: usize = 1024;

/// The receiving half of the UART.
pub(super) static KEYS: Mutex<Option<Keys<Uart>>> = Mutex::new(None);
static TYPED: Mutex<[Typed; MAX_GUESTS]> = Mutex::new([Typed::EMPTY; MAX_GUESTS]);
static WAITING: Waiting = Waiting::new();

/// From now on the UART raises its line when a key comes.
pub(crate) fn interrupt_on_receive() {
    if let Some(keys) = &mut *KEYS.lock() {
        keys.interrupt_on_receive();
    }
}

/// Takes what was typed off the line; returns a command for the monitor, if one is complete.
pub(crate) fn poll_input() -> Option<Command> {
    let mut keys = KEYS.lock();
    let mut key = keys.as_mut()?.receive()?;
    let mut command = None;
    for _ in 0..MAX_KEYS {
        match typed(key) {
            Input::None => {}
            Input::ToGuest(guest, byte) => {
                if let Some(typed) = TYPED.lock().get_mut(guest) {
                    typed.push(byte);
                    WAITING.add(guest);
                }
            }
            Input::Monitor(complete) => {
                command = Some(complete);
                break;
            }
        }
        let Some(next) = keys.as_mut().and_then(Keys::receive) else { break };
        key = next;
    }
    drop(keys);
    // What was typed is shown; who typed waits for it.
    send(Some(Owner::Hypervisor));
    command
}

fn typed(byte: u8) -> Input {
    let mut state = STATE.lock();
    let State { mux, queue, .. } = &mut *state;
    mux.typed(byte, &mut |byte| queue.push(Owner::Hypervisor, byte))
}

/// Shows the monitor's prompt again.
pub(crate) fn prompt() {
    speak(Owner::Hypervisor, 0, Mux::prompt);
}

/// A byte that was typed for a guest.
pub(crate) fn typed_for(guest: usize) -> Option<u8> {
    if !WAITING.has(guest) {
        return None;
    }
    let mut all = TYPED.lock();
    let typed = all.get_mut(guest)?;
    let byte = typed.pop();
    if typed.is_empty() {
        WAITING.remove(guest);
    }
    byte
}

/// Whether something was typed for a guest since this was asked.
pub(crate) fn take_news() -> bool {
    WAITING.take_news()
}
