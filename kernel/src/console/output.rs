//! Output on the serial line (`docs/decisions/0052-no-guest-waits-for-anothers-bytes.md`).
//!
//! A speaker puts its bytes into the queue ([`mux::queue`]) and sends the first ones if they are its own: it waits
//! for the UART, and no other speaker waits for it. Locks: [`STATE`] protects memory only and is held briefly. [`LINE`]
//! is held during waits for the UART, so it is only tried: a speaker that finds it taken leaves its bytes, within its
//! budget, in the queue. The holder sends them later, or calls the speaker to do so.

use arch::Bdf;
use arch::uart::UartPlace;
use mux::line::{Keys, Line, PIECE};
use mux::queue::{Owner, Queue, Turn};
use mux::{Mux, Ring};
use spin::{Mutex, Once};

use super::keys::KEYS;
use super::{Uart, screen};

/// Far more looks than it takes until a UART has sent what waits for it, or has stalled.
const MAX_WAITS: u32 = 1 << 28;
/// A lock that is still held after this many attempts is held by a CPU that has stopped.
const MAX_LOOKS: u32 = 10_000_000;

/// The multiplexer, the queue of the line, and the log in memory.
pub(super) struct State {
    pub(super) mux: Mux,
    pub(super) queue: Queue,
    pub(super) log: Ring,
    /// Where the console's UART is.
    pub(super) place: Option<UartPlace>,
    /// The PCI function that it is on.
    pub(super) card: Option<Bdf>,
}

pub(super) static STATE: Mutex<State> = Mutex::new(State {
    mux: Mux::new(),
    queue: Queue::new(),
    log: Ring::new(),
    place: None,
    card: None,
});
static LINE: Mutex<Option<Line<Uart>>> = Mutex::new(None);
/// Has a CPU of a guest call [`send_for`].
static CALL: Once<fn(usize)> = Once::new();

impl State {
    /// Has `work` put an owner's bytes into the queue, in whole, if they are taken now. Without a UART they are gone.
    fn put(&mut self, owner: Owner, work: &impl Fn(&mut Mux, &mut dyn FnMut(u8))) -> bool {
        let Self { mux, queue, place, .. } = self;
        if place.is_none() {
            work(mux, &mut |_| {});
            return true;
        }
        while let Some((owner, bytes)) = queue.take_loss() {
            mux.lost(owner, bytes, &mut |byte| queue.push(owner, byte));
        }
        let taken = queue.has_room(owner);
        if taken {
            work(mux, &mut |byte| queue.push(owner, byte));
        }
        taken
    }
}

/// Queues what `work` writes in the name of `owner`, which then waits for its own bytes, and before that for room. If the
/// UART has stalled, the bytes are lost: `size` of them.
pub(super) fn speak(owner: Owner, size: u64, work: impl Fn(&mut Mux, &mut dyn FnMut(u8))) {
    for _ in 0..MAX_WAITS {
        if STATE.lock().put(owner, &work) {
            send(Some(owner));
            return;
        }
        if !send(Some(owner)) {
            break;
        }
        core::hint::spin_loop();
    }
    STATE.lock().queue.lose(owner, size);
}

/// Leaves in the queue what `work` puts there, for a CPU of the guest's to send. What finds no room is lost.
pub(super) fn leave(guest: usize, size: u64, work: impl Fn(&mut Mux, &mut dyn FnMut(u8))) {
    let owner = Owner::Guest(guest);
    let mut state = STATE.lock();
    if !state.put(owner, &work) {
        state.queue.lose(owner, size);
    }
    drop(state);
    call(guest);
}

/// Leaves bytes for a guest's gdb in the queue, for a CPU of the guest's to send; `false` while there is no room.
pub(crate) fn to_debugger(guest: usize, bytes: &[u8]) -> bool {
    let queued =
        STATE.lock().put(Owner::Guest(guest), &|mux, sink| mux.to_debugger(guest, bytes, sink));
    if queued {
        call(guest);
    }
    queued
}

/// Sends while it is `speaker`'s turn, and calls the next owner; `false`: the UART has stalled.
pub(super) fn send(speaker: Option<Owner>) -> bool {
    loop {
        let Some(mut line) = LINE.try_lock() else { return true };
        let Some(uart) = line.as_mut() else { return true };
        let Some(mut next) = send_on(uart, speaker) else { return false };
        drop(line);
        if next == Turn::Done {
            // Who found the line taken has left its bytes.
            next = STATE.lock().queue.turn(speaker);
        }
        match next {
            Turn::Send => {}
            Turn::Done => return true,
            Turn::Call(guest) => {
                call(guest);
                return true;
            }
        }
    }
}

/// Sends while it is `speaker`'s turn, and returns the next turn. The queue is not locked during waits for the UART.
/// `None`: the UART has stalled.
fn send_on(line: &mut Line<Uart>, speaker: Option<Owner>) -> Option<Turn> {
    loop {
        let turn = STATE.lock().queue.turn(speaker);
        if turn != Turn::Send {
            return Some(turn);
        }
        let room = line.wait_for_room();
        if room == 0 {
            return None;
        }
        send_piece(line, room);
    }
}

fn call(guest: usize) {
    if let Some(call) = CALL.get() {
        call(guest);
    }
}

fn send_piece(line: &mut Line<Uart>, room: usize) {
    let mut piece = [0; PIECE];
    let Some(piece) = piece.get_mut(..room.min(PIECE)) else { return };
    let count = STATE.lock().queue.take(piece);
    line.send(piece.get(..count).unwrap_or_default());
}

/// A guest's CPU sends the guest's bytes: it was called for that.
pub(crate) fn send_for(guest: usize) {
    send(Some(Owner::Guest(guest)));
}

/// Sends a piece of any owner's bytes if the UART is ready.
pub(crate) fn pass() {
    let Some(mut line) = LINE.try_lock() else { return };
    let Some(line) = line.as_mut() else { return };
    if STATE.lock().queue.is_empty() {
        return;
    }
    let room = line.room();
    if room > 0 {
        send_piece(line, room);
    }
}

/// Sets the function that calls a guest whose bytes wait.
pub(crate) fn call_by(call: fn(usize)) {
    CALL.call_once(|| call);
}

/// Waits until the last byte is out.
pub(crate) fn drain() {
    for _ in 0..MAX_LOOKS {
        if !send(None) || STATE.lock().queue.is_empty() {
            break;
        }
        core::hint::spin_loop();
    }
    if let Some(mut line) = LINE.try_lock()
        && let Some(line) = line.as_mut()
    {
        line.drain();
    }
}

/// Continues at another UART, or at none.
///
/// # Safety
/// No other code drives it.
pub(super) unsafe fn move_to(place: Option<UartPlace>, divisor: Option<u16>, card: Option<Bdf>) {
    let (mut line, mut keys) = (LINE.lock(), KEYS.lock());
    *line = place.map(|place| Line::new(Uart(place), divisor));
    *keys = place.map(|place| Keys::new(Uart(place)));
    let mut state = STATE.lock();
    state.queue.clear();
    (state.place, state.card) = (place, card);
}

/// A lock of the console's, whatever it guards.
trait Lock {
    fn is_free(&self) -> bool;
    /// # Safety
    /// Who holds it never goes on.
    unsafe fn force(&self);
}

impl<T> Lock for Mutex<T> {
    fn is_free(&self) -> bool {
        self.try_lock().is_some()
    }

    unsafe fn force(&self) {
        // SAFETY: the caller vouches for it.
        unsafe { self.force_unlock() };
    }
}

/// Breaks the console's locks that are not let go of: only for a CPU that will never go on, so that its last words are
/// seen even if it held them.
///
/// # Safety
/// No other CPU writes any more, or garbled output is acceptable.
pub(crate) unsafe fn break_lock() {
    let locks: [&dyn Lock; 3] = [&STATE, &LINE, &screen::SCREEN];
    for lock in locks {
        let is_free = (0..MAX_LOOKS).any(|_| {
            core::hint::spin_loop();
            lock.is_free()
        });
        if !is_free {
            // SAFETY: held for so long, it is held by a CPU that has stopped, such as this one.
            unsafe { lock.force() };
        }
    }
    screen::leave_if_failed();
}
