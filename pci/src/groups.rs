//! Isolation groups: functions that can reach each other without passing the IOMMU, or that it
//! cannot tell apart. They go to one guest together, or to none.
//!
//! Three rules join functions: a device's functions that have no Access Control Services may talk
//! inside the device; a bridge or port without them may turn a request around, so everything behind
//! it is one group with it; and behind a bridge to conventional PCI requests carry the bridge's
//! requester ID ([`Groups::requesters`]). Single-function devices on a root bus are groups of their
//! own, as the root complex passes requests on to the IOMMU.
//! (PCI Express Base Specification, "Access Control Services"; PCI Express to PCI/PCI-X Bridge
//! Specification, "Assignment of Requester ID and Tag by the Bridge".)
//!
//! Invariant: each function is in exactly one group. Bridges that lie about the buses behind them
//! make groups larger, never smaller.

use alloc::vec::Vec;
use core::fmt;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::acs;
use crate::capability::{PCI_EXPRESS, find};
use crate::header::{Function, HeaderType};

/// A function's role in the tree ("PCI Express Capabilities Register", Device/Port Type).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    /// A device, or anything else that forwards nothing.
    None,
    /// Root Port or Downstream Port of a switch: one link, so one device behind it.
    Link,
    /// Upstream Port of a switch: its Downstream Ports are behind it.
    Upstream,
    /// PCI Express to PCI/PCI-X Bridge.
    ToConventional,
    /// The same without a PCI Express capability: it is behind a link, where nothing else can be
    /// (ASMedia ASM1083 and ASM1085, Tundra TSI381, ITE 8892 and 8893).
    Unnamed,
    /// A bridge that is conventional PCI at its primary side.
    Conventional,
}

impl Port {
    fn of(space: &impl ConfigSpace, function: &Function) -> Self {
        if !matches!(function.header, HeaderType::Bridge { .. }) {
            return Self::None;
        }
        let Some(express) = find(space, function.bdf, PCI_EXPRESS) else {
            return Self::Conventional;
        };
        match space.read(function.bdf, express.offset + 2, Width::Word) >> 4 & 0xf {
            4 | 6 => Self::Link,
            5 => Self::Upstream,
            7 => Self::ToConventional,
            _ => Self::Conventional,
        }
    }
}

/// Identifies a device: segment, bus and device number. Behind a link there is no device number, because the one device
/// may use all numbers for more than eight functions (ARI).
type Device = ((u16, u8), Option<u8>);

const fn bus(function: Bdf) -> (u16, u8) {
    (function.segment(), function.bus())
}

/// A function and its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Member {
    function: Function,
    port: Port,
    device: Device,
    /// Has Access Control Services, and they are on.
    isolates: bool,
    /// May turn a request from below around and send it down again.
    turns_around: bool,
    /// Equal in all members of a group: the function of one of them.
    group: Bdf,
}

impl Member {
    /// Whether requests of `other` pass this bridge on their way up.
    fn forwards(&self, other: Bdf) -> bool {
        self.secondary().is_some_and(|(secondary, subordinate)| {
            (secondary..=subordinate).contains(&other.bus())
                && other.segment() == self.function.bdf.segment()
                && other != self.function.bdf
        })
    }

    /// The buses behind a bridge, if the firmware has set them.
    fn secondary(&self) -> Option<(u8, u8)> {
        match self.function.header {
            HeaderType::Bridge { secondary: secondary @ 1.., subordinate } => {
                Some((secondary, subordinate))
            }
            HeaderType::Bridge { .. } | HeaderType::Device | HeaderType::Unknown(_) => None,
        }
    }

    /// Whether a rule joins the two, where `other` may be behind this or be its sibling.
    fn touches(&self, other: &Self) -> bool {
        let inside = self.device == other.device && !self.isolates && !other.isolates;
        inside || self.turns_around && self.forwards(other.function.bdf)
    }
}

/// Why an assignment would not keep guests apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupError {
    /// A function that a guest would get.
    pub function: Bdf,
    /// One of its group that the guest would not get.
    pub other: Bdf,
    /// All that must go to one guest together; bridges and the like may stay behind.
    pub together: Vec<Bdf>,
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, other, together } = self;
        write!(
            f,
            "{function} cannot be assigned without {other}, as nothing keeps the two from reaching \
             each other (no Access Control Services): give"
        )?;
        for (index, member) in together.iter().enumerate() {
            write!(f, "{} {member}", if index == 0 { "" } else { "," })?;
        }
        f.write_str(" to one guest, or none of them to any")
    }
}

impl core::error::Error for GroupError {}

/// The groups of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Groups {
    members: Vec<Member>,
}

impl Groups {
    /// The groups of `functions`, which are the complete result of a scan. Access Control Services count
    /// if they are on ([`acs::enable`]).
    #[must_use]
    pub fn new(space: &impl ConfigSpace, functions: &[Function]) -> Self {
        let member = |function: &Function| Member {
            function: *function,
            port: Port::of(space, function),
            device: (bus(function.bdf), Some(function.bdf.device())),
            isolates: acs::isolates(space, function),
            turns_around: false,
            group: function.bdf,
        };
        let mut groups = Self { members: functions.iter().map(member).collect() };
        groups.find_devices();
        let members = groups.members.clone();
        for one in &members {
            for other in members.iter().filter(|other| one.touches(other)) {
                groups.join(one.function.bdf, other.function.bdf);
            }
        }
        groups
    }

    /// Finds out which functions are one device, and with it which bridges turn requests around.
    fn find_devices(&mut self) {
        let links = self.members.iter().filter(|member| member.port == Port::Link);
        let behind = |link: &Member| Some((link.function.bdf.segment(), link.secondary()?.0));
        let links: Vec<(u16, u8)> = links.filter_map(behind).collect();
        for member in self.members.iter_mut().filter(|member| links.contains(&member.device.0)) {
            member.device.1 = None;
            if member.port == Port::Conventional {
                member.port = Port::Unnamed;
            }
        }
        let devices: Vec<Device> = self.members.iter().map(|member| member.device).collect();
        for member in &mut self.members {
            let siblings = devices.iter().filter(|device| **device == member.device);
            member.turns_around = match member.port {
                Port::None => false,
                Port::Link => !member.isolates,
                Port::Upstream => !member.isolates && siblings.count() > 1,
                Port::ToConventional | Port::Unnamed | Port::Conventional => true,
            };
        }
    }

    fn join(&mut self, one: Bdf, other: Bdf) {
        let (Some(into), Some(from)) = (self.label(one), self.label(other)) else { return };
        for member in self.members.iter_mut().filter(|member| member.group == from) {
            member.group = into;
        }
    }

    fn label(&self, function: Bdf) -> Option<Bdf> {
        self.members.iter().find(|member| member.function.bdf == function).map(|found| found.group)
    }

    /// The group of `function`, itself included; empty if the scan has not found it.
    pub fn group(&self, function: Bdf) -> impl Iterator<Item = &Function> {
        let label = self.label(function);
        let members = self.members.iter().filter(move |member| Some(member.group) == label);
        members.map(|member| &member.function)
    }

    /// The requester IDs that requests of `function` may carry when they reach the IOMMU: its own,
    /// and those of bridges to conventional PCI above it. Each belongs into its guest's domain.
    pub fn requesters(&self, function: Bdf) -> impl Iterator<Item = Bdf> {
        let aliases = self.aliases(function).flat_map(|(bridge, alias)| {
            // What this one sends in the name of others is only known from those that were seen.
            let own = (bridge.port == Port::Unnamed).then_some(bridge.function.bdf);
            core::iter::once(alias).chain(own)
        });
        core::iter::once(function).chain(aliases)
    }

    /// The requester ID in the messages of `function` when they reach the IOMMU: the ID of the
    /// uppermost bridge to conventional PCI above it, else its own. Functions that share an ID are one group.
    #[must_use]
    pub fn interrupt_requester(&self, function: Bdf) -> Bdf {
        let above = |bridge: &Member| self.aliases(bridge.function.bdf).count();
        let uppermost = self.aliases(function).min_by_key(|(bridge, _)| above(bridge));
        uppermost.map_or(function, |(_, alias)| alias)
    }

    /// The bridges to conventional PCI above `function`, and what each makes of the requester IDs of
    /// requests from below (PCI Express to PCI/PCI-X Bridge Specification, "Assignment of Requester ID
    /// and Tag by the Bridge"). One at a conventional bus is the master there: its ID is its own.
    fn aliases(&self, function: Bdf) -> impl Iterator<Item = (&Member, Bdf)> {
        let above = self.members.iter().filter(move |member| member.forwards(function));
        above.filter_map(move |bridge| match bridge.port {
            Port::None | Port::Link | Port::Upstream => None,
            Port::ToConventional | Port::Unnamed => {
                let alias = Bdf::new(bridge.secondary()?.0, 0, 0);
                Some((bridge, alias.in_segment(function.segment())))
            }
            Port::Conventional => Some((bridge, bridge.function.bdf)),
        })
    }

    /// Checks the functions that each guest would get. A group goes to one guest as a whole; only
    /// what the hypervisor keeps quiet may stay behind ([`Function::may_stay_behind`]).
    ///
    /// # Errors
    /// The first function whose group is divided, and the functions that it needs.
    pub fn check(&self, assignment: &[impl AsRef<[Bdf]>]) -> Result<(), GroupError> {
        self.divided(assignment).into_iter().next().map_or(Ok(()), Err)
    }

    /// The groups that [`Groups::check`] finds divided, each once.
    #[must_use]
    pub fn divided(&self, assignment: &[impl AsRef<[Bdf]>]) -> Vec<GroupError> {
        let mut divided: Vec<GroupError> = Vec::new();
        for guest in assignment.iter().map(AsRef::as_ref) {
            let has = |bdf: Bdf| guest.contains(&bdf);
            let is_others = |bdf| !has(bdf) && assignment.iter().any(|o| o.as_ref().contains(&bdf));
            for &function in guest {
                let must = |member: &&Function| {
                    !member.may_stay_behind() || has(member.bdf) || is_others(member.bdf)
                };
                let together: Vec<Bdf> = self.group(function).filter(must).map(|m| m.bdf).collect();
                let known = divided.iter().any(|other| other.together == together);
                if let Some(&other) = together.iter().find(|bdf| !has(**bdf) && !known) {
                    divided.push(GroupError { function, other, together });
                }
            }
        }
        divided
    }
}

#[cfg(test)]
mod tests;
