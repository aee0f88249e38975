//! The capability lists as the guest sees them: which are visible, and what follows which.

use arrayvec::ArrayVec;

use crate::capability::Capability;

/// A capability and whether the guest sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    pub(super) capability: Capability,
    /// Length in bytes; what lies behind it is not its own.
    pub(super) length: u16,
    pub(super) visible: bool,
}

/// One of the two lists, in its own order.
#[derive(Clone, Debug)]
pub(super) struct List<const N: usize>(ArrayVec<Listed, N>);

impl<const N: usize> List<N> {
    pub(super) const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Appends; `false` where the list is full.
    pub(super) fn push(&mut self, listed: Listed) -> bool {
        self.0.try_push(listed).is_ok()
    }

    pub(super) fn contains(&self, id: u16) -> bool {
        self.0.iter().any(|listed| listed.capability.id == id)
    }

    /// Offset of the first visible capability, or 0.
    pub(super) fn first(&self) -> u16 {
        first_visible(&self.0)
    }

    /// The capability that holds `offset`, and the offset of the next visible one (or 0).
    pub(super) fn at(&self, offset: u16) -> Option<(Listed, u16)> {
        let (index, listed) = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, listed)| listed.capability.offset <= offset)
            .max_by_key(|(_, listed)| listed.capability.offset)?;
        let behind = listed.capability.offset.saturating_add(listed.length);
        (offset < behind)
            .then(|| (*listed, first_visible(self.0.get(index + 1..).unwrap_or_default())))
    }
}

fn first_visible(list: &[Listed]) -> u16 {
    list.iter().find(|listed| listed.visible).map_or(0, |listed| listed.capability.offset)
}
