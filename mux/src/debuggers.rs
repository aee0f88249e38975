//! The gdbs at the line's other end: which guests have one, and what has come from them and was not yet taken.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::frame::{Assembler, Channel, Kind, MAX_GUESTS, Progress, encode};
use crate::{MARK, Sink};

/// So many bytes from one gdb wait at most: more than its longest packet. What is beyond is lost, and gdb asks again.
const MAX_WAITING: usize = 8 << 10;

/// The gdbs, and the frame that is coming in.
#[derive(Debug)]
pub(crate) struct Debuggers {
    /// A guest, and what its gdb has sent.
    received: Vec<(usize, VecDeque<u8>)>,
    assembler: Assembler,
    /// Within a frame.
    inside: bool,
}

impl Debuggers {
    pub(crate) const fn new() -> Self {
        Self { received: Vec::new(), assembler: Assembler::new(), inside: false }
    }

    pub(crate) fn add(&mut self, guest: usize) {
        self.received.push((guest, VecDeque::with_capacity(MAX_WAITING)));
    }

    fn queue(&mut self, guest: usize) -> Option<&mut VecDeque<u8>> {
        self.received.iter_mut().find(|(own, _)| *own == guest).map(|(_, queue)| queue)
    }

    pub(crate) fn take(&mut self, guest: usize) -> Option<u8> {
        self.queue(guest)?.pop_front()
    }

    /// Takes a byte that may be a frame's; `escaped`: the escape key came before it. `false`: it is a key.
    pub(crate) fn typed(
        &mut self,
        byte: u8,
        escaped: bool,
        names: &[String],
        sink: &mut Sink<'_>,
    ) -> bool {
        if escaped {
            self.assembler.clear();
        }
        if !core::mem::take(&mut self.inside) && !escaped {
            return false;
        }
        match self.assembler.push(byte) {
            Progress::More => self.inside = true,
            Progress::Whole(Channel { kind: Kind::Names, .. }) => self.names(names, sink),
            Progress::Whole(Channel { kind: Kind::Gdb, guest }) => self.receive(guest.into()),
            Progress::Damaged => {}
            Progress::Cut => return false,
        }
        true
    }

    fn receive(&mut self, guest: usize) {
        let Self { received, assembler, .. } = self;
        if let Some((_, queue)) = received.iter_mut().find(|(own, _)| *own == guest) {
            let room = MAX_WAITING.saturating_sub(queue.len());
            queue.extend(assembler.payload().iter().take(room));
        }
    }

    /// A frame for each guest that one can name.
    fn names(&mut self, names: &[String], sink: &mut Sink<'_>) {
        for (index, name) in names.iter().enumerate().take(MAX_GUESTS) {
            let Ok(guest) = u8::try_from(index) else { break };
            let mut payload = [0; 1 + 4 * 64];
            let reachable = self.queue(index).is_some();
            let text = core::iter::once(u8::from(reachable)).chain(name.bytes());
            let length = payload.iter_mut().zip(text).map(|(to, from)| *to = from).count();
            let payload = payload.get(..length).unwrap_or_default();
            encode(MARK, Channel { kind: Kind::Names, guest }, payload, sink);
        }
    }
}
