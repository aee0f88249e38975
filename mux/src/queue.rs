//! Output that waits for the serial line: a queue of bytes, each with an owner.
//!
//! Invariants: the bytes of one owner leave in order; lost bytes are counted exactly, and each count is reported once.
//! An owner can use up only its own budget. Policy: the owner of the first bytes sends them; the others continue with
//! their own work ([`Queue::turn`]).

use alloc::vec::Vec;

use crate::HELD;

/// Bytes that wait at most, everybody's together.
pub const QUEUE_BYTES: usize = 16 << 10;
/// Maximum number of queued bytes of the hypervisor.
pub const OWN_BUDGET: usize = 4 << 10;
/// Maximum number of queued bytes of one guest; fewer if there are many guests.
pub const BUDGET: usize = 1 << 10;
/// A message that begins within the budget is queued whole: a guest's held line with its label, or a line of the log.
pub const LONGEST_MESSAGE: usize = 1 << 10;

/// Maximum number of accounts; guests beyond it share the last one.
const MAX_ACCOUNTS: usize = u8::MAX as usize;

/// The owner of bytes, who waits for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The hypervisor: its log, its reports, the monitor.
    Hypervisor,
    /// The guest of this index.
    Guest(usize),
}

/// What a speaker does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// It has nothing more to do here.
    Done,
    /// It sends the first bytes of the queue.
    Send,
    /// The bytes in front are this guest's, which is not here: it is to be called, and sends itself.
    Call(usize),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    byte: u8,
    /// Its owner's account: 0 is the hypervisor's.
    account: u8,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    waiting: usize,
    lost: u64,
    /// It was called to send, and has not come yet.
    called: bool,
}

impl Account {
    const EMPTY: Self = Self { waiting: 0, lost: 0, called: false };
}

#[derive(Debug)]
pub struct Queue {
    slots: [Slot; QUEUE_BYTES],
    first: usize,
    count: usize,
    own: Account,
    guests: Vec<Account>,
}

impl Queue {
    /// An empty one, without guests.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [Slot { byte: 0, account: 0 }; QUEUE_BYTES],
            first: 0,
            count: 0,
            own: Account::EMPTY,
            guests: Vec::new(),
        }
    }

    /// Adds a guest, whose index is the number of those before it.
    pub fn add_guest(&mut self) {
        if self.guests.len() < MAX_ACCOUNTS {
            self.guests.push(Account::EMPTY);
        }
    }

    /// Whether something of this owner's is taken now: it is within its budget, and there is room for the longest
    /// message.
    #[must_use]
    pub fn has_room(&self, owner: Owner) -> bool {
        let free = QUEUE_BYTES.saturating_sub(self.count);
        let budget = match owner {
            Owner::Hypervisor => OWN_BUDGET,
            Owner::Guest(_) => self.guests_budget(),
        };
        free >= LONGEST_MESSAGE && self.account(owner).is_some_and(|it| it.waiting < budget)
    }

    /// An equal share of the queue without the hypervisor's part, for up to 40 guests. A guest's last message may exceed
    /// its budget by the length of its held line. Labels are not counted: they are short, and the free part has room.
    fn guests_budget(&self) -> usize {
        let shared = QUEUE_BYTES - OWN_BUDGET - LONGEST_MESSAGE;
        let share = shared.checked_div(self.guests.len()).unwrap_or(shared);
        share.saturating_sub(HELD).clamp(1, BUDGET)
    }

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts a byte behind all others.
    pub fn push(&mut self, owner: Owner, byte: u8) {
        let at = (self.first + self.count) % QUEUE_BYTES;
        let full = self.count == QUEUE_BYTES;
        let number = account_number(owner);
        let Some(account) = self.account_mut(owner) else { return };
        if full {
            account.lost += 1;
            return;
        }
        account.waiting += 1;
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Slot { byte, account: number };
        }
        self.count += 1;
    }

    /// These many bytes of an owner's found no room.
    pub fn lose(&mut self, owner: Owner, bytes: u64) {
        if let Some(account) = self.account_mut(owner) {
            account.lost = account.lost.saturating_add(bytes);
        }
    }

    /// An owner that has lost bytes, and their number, once there is room to report it.
    pub fn take_loss(&mut self) -> Option<(Owner, u64)> {
        let owners = (0..self.guests.len()).map(Owner::Guest);
        let mut owners = core::iter::once(Owner::Hypervisor).chain(owners);
        let lost = |owner: &Owner| self.account(*owner).is_some_and(|it| it.lost > 0);
        let owner = owners.find(|owner| lost(owner) && self.has_room(*owner))?;
        let bytes = core::mem::take(&mut self.account_mut(owner)?.lost);
        Some((owner, bytes))
    }

    /// Moves the first bytes into `piece`; returns their number.
    pub fn take(&mut self, piece: &mut [u8]) -> usize {
        let mut taken = 0;
        for place in piece {
            let Some((owner, byte)) = self.front() else { break };
            *place = byte;
            if let Some(account) = self.account_mut(owner) {
                account.waiting = account.waiting.saturating_sub(1);
            }
            self.first = (self.first + 1) % QUEUE_BYTES;
            self.count -= 1;
            taken += 1;
        }
        taken
    }

    /// What `speaker` does next; `None` waits until the queue is empty. A guest sends its own bytes and the hypervisor's,
    /// which are few. While its budget lasts, it does not wait for another guest's. The hypervisor waits until its own
    /// bytes are sent.
    pub fn turn(&mut self, speaker: Option<Owner>) -> Turn {
        if let Some(account) = speaker.and_then(|speaker| self.account_mut(speaker)) {
            account.called = false;
        }
        let Some((front, _)) = self.front() else { return Turn::Done };
        let sends = match (speaker, front) {
            (None, _) | (Some(_), Owner::Hypervisor) => true,
            (Some(Owner::Hypervisor), Owner::Guest(_)) => self.own.waiting > 0,
            (Some(speaker), Owner::Guest(_)) => speaker == front || !self.has_room(speaker),
        };
        match front {
            Owner::Guest(guest) if !sends => {
                let first = self
                    .account_mut(front)
                    .is_some_and(|it| !core::mem::replace(&mut it.called, true));
                if first { Turn::Call(guest) } else { Turn::Done }
            }
            Owner::Guest(_) | Owner::Hypervisor => Turn::Send,
        }
    }

    /// Empties the queue and the loss counts: output continues on another line.
    pub fn clear(&mut self) {
        self.count = 0;
        core::iter::once(&mut self.own).chain(&mut self.guests).for_each(|it| *it = Account::EMPTY);
    }

    fn front(&self) -> Option<(Owner, u8)> {
        let slot = self.slots.get(self.first).filter(|_| self.count > 0)?;
        let guest = usize::from(slot.account).checked_sub(1);
        Some((guest.map_or(Owner::Hypervisor, Owner::Guest), slot.byte))
    }

    fn account(&self, owner: Owner) -> Option<&Account> {
        match account_number(owner) {
            0 => Some(&self.own),
            number => self.guests.get(usize::from(number) - 1),
        }
    }

    fn account_mut(&mut self, owner: Owner) -> Option<&mut Account> {
        match account_number(owner) {
            0 => Some(&mut self.own),
            number => self.guests.get_mut(usize::from(number) - 1),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

fn account_number(owner: Owner) -> u8 {
    match owner {
        Owner::Hypervisor => 0,
        Owner::Guest(guest) => u8::try_from(guest.saturating_add(1)).unwrap_or(u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Mux, line::PIECE};

    const A: Owner = Owner::Guest(0);
    const B: Owner = Owner::Guest(1);

    fn with_guests(count: usize) -> Queue {
        let mut queue = Queue::new();
        (0..count).for_each(|_| queue.add_guest());
        queue
    }

    fn put(queue: &mut Queue, owner: Owner, text: &[u8]) {
        text.iter().for_each(|byte| queue.push(owner, *byte));
    }

    fn take_all(queue: &mut Queue) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), [0; PIECE]);
        loop {
            match queue.take(&mut piece) {
                0 => return all,
                count => all.extend_from_slice(&piece[..count]),
            }
        }
    }

    #[test]
    fn a_guest_that_floods_uses_up_its_own_budget_and_no_others() {
        for guests in [2, 8, 40] {
            let mut queue = with_guests(guests);
            for guest in (1..guests).map(Owner::Guest) {
                while queue.has_room(guest) {
                    put(&mut queue, guest, &[b'x'; HELD]);
                }
                assert!(queue.has_room(A) && queue.has_room(Owner::Hypervisor), "{guests} guests");
            }
            while queue.has_room(Owner::Hypervisor) {
                put(&mut queue, Owner::Hypervisor, &[b'x'; 100]);
            }
            assert!(queue.has_room(A), "{guests} guests");
            assert_eq!(queue.take_loss(), None);
        }
    }

    #[test]
    fn whoever_is_in_front_sends_and_the_other_is_called_once() {
        let mut queue = with_guests(2);
        put(&mut queue, A, b"aa");
        put(&mut queue, B, b"b");
        assert_eq!(queue.turn(Some(B)), Turn::Call(0), "the bytes in front are A's");
        assert_eq!(queue.turn(Some(B)), Turn::Done, "A is on its way");
        assert_eq!(queue.turn(Some(A)), Turn::Send);
        assert_eq!(queue.take(&mut [0; 2]), 2);
        assert_eq!(queue.turn(Some(A)), Turn::Call(1), "A waits for nothing of B's");
        assert_eq!(queue.turn(None), Turn::Send, "who waits until all is out sends all");
        assert_eq!(queue.turn(Some(B)), Turn::Send);
        assert_eq!(take_all(&mut queue), b"b");
        assert_eq!(queue.turn(Some(A)), Turn::Done);
        assert_eq!(queue.turn(None), Turn::Done);
    }

    #[test]
    fn a_guest_whose_budget_is_used_up_sends_whatever_is_in_front() {
        let mut queue = with_guests(2);
        put(&mut queue, A, b"a");
        while queue.has_room(B) {
            put(&mut queue, B, b"b");
        }
        assert_eq!(queue.turn(Some(B)), Turn::Send);
    }

    #[test]
    fn the_hypervisor_sees_its_own_words_out_and_leaves_guests_theirs() {
        let mut queue = with_guests(1);
        put(&mut queue, A, b"a");
        put(&mut queue, Owner::Hypervisor, b"h");
        put(&mut queue, A, b"a");
        assert_eq!(queue.turn(Some(Owner::Hypervisor)), Turn::Send);
        assert_eq!(queue.take(&mut [0; 2]), 2);
        assert_eq!(queue.turn(Some(Owner::Hypervisor)), Turn::Call(0));
    }

    #[test]
    fn what_found_no_room_is_counted_to_the_byte_and_said_once() {
        let mut queue = with_guests(1);
        while queue.has_room(A) {
            put(&mut queue, A, b"x");
        }
        queue.lose(A, 3);
        queue.lose(Owner::Hypervisor, 40);
        assert_eq!(queue.take_loss(), Some((Owner::Hypervisor, 40)));
        assert_eq!(queue.take_loss(), None, "there is no room to say that A lost some");
        take_all(&mut queue);
        assert_eq!((queue.take_loss(), queue.take_loss()), (Some((A, 3)), None));
        put(&mut queue, Owner::Hypervisor, &[b'x'; QUEUE_BYTES + 7]);
        assert_eq!(take_all(&mut queue).len(), QUEUE_BYTES);
        assert_eq!(queue.take_loss(), Some((Owner::Hypervisor, 7)));
    }

    #[test]
    fn a_line_that_goes_on_elsewhere_begins_empty() {
        let mut queue = with_guests(1);
        put(&mut queue, A, b"x");
        queue.lose(A, 3);
        queue.clear();
        assert_eq!((queue.turn(None), queue.take_loss()), (Turn::Done, None));
    }

    #[test]
    fn a_queue_knows_no_guest_that_was_not_added() {
        let mut queue = with_guests(1);
        put(&mut queue, B, b"x");
        assert!(!queue.has_room(B));
        assert_eq!(queue.turn(Some(B)), Turn::Done);
        let mut many = with_guests(300);
        put(&mut many, Owner::Guest(299), b"x");
        assert_eq!(many.turn(Some(Owner::Guest(299))), Turn::Send);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Say(u8, Vec<u8>),
        Take(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..3_u8, prop::collection::vec(any::<u8>(), 0..400)).prop_map(|(who, text)| Step::Say(who, text)),
            1 => (0..=PIECE).prop_map(Step::Take),
        ]
    }

    proptest! {
        #[test]
        fn bytes_leave_in_their_order_and_each_is_sent_or_counted(
            steps in prop::collection::vec(step(), 0..60)
        ) {
            let (mut queue, mut sent, mut said) = (with_guests(2), Vec::new(), Vec::new());
            let mut lost = 0_u64;
            for step in steps {
                match step {
                    Step::Say(who, text) => {
                        let owner = [Owner::Hypervisor, A, B][usize::from(who)];
                        if queue.has_room(owner) {
                            put(&mut queue, owner, &text);
                            said.extend(text);
                        } else {
                            queue.lose(owner, text.len() as u64);
                            lost += text.len() as u64;
                        }
                    }
                    Step::Take(count) => {
                        let mut piece = [0; PIECE];
                        let count = queue.take(&mut piece[..count]);
                        sent.extend_from_slice(&piece[..count]);
                    }
                }
            }
            sent.extend(take_all(&mut queue));
            prop_assert_eq!(sent, said, "what is begun within the budget is put in whole");
            let counted: u64 = std::iter::from_fn(|| queue.take_loss()).map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(counted, lost);
        }
    }

    #[test]
    fn a_line_with_its_label_is_put_in_whole_and_a_loss_is_a_line_of_its_own() {
        let mut mux = Mux::new();
        let mut queue = with_guests(2);
        ["a", "b"].iter().for_each(|name| mux.add_guest((*name).to_owned()));
        let mut lost = 0;
        for byte in b"0123456789\r\n".iter().cycle().take(6 * BUDGET) {
            if queue.has_room(B) {
                mux.guest_output(1, *byte, &mut |byte| queue.push(B, byte));
            } else {
                queue.lose(B, 1);
                lost += 1;
            }
        }
        let sent = String::from_utf8(take_all(&mut queue)).unwrap();
        assert!(sent.split_inclusive('\n').all(|line| line == "b: 0123456789\r\n"), "{sent}");
        let (owner, bytes) = queue.take_loss().unwrap();
        assert_eq!((owner, bytes), (B, lost));
        mux.lost(owner, bytes, &mut |byte| queue.push(owner, byte));
        let said = String::from_utf8(take_all(&mut queue)).unwrap();
        assert_eq!(
            said,
            format!("\x1enexit: guest b: {lost} bytes lost: the line takes no more\r\n")
        );
    }
}
