//! How a function would be reset, without doing it.

use core::fmt;

use arch::Bdf;
use arch::machine::ConfigSpace;

use super::{Method, bus_of, method};
use crate::header::Function;

/// The first way that would be tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Function Level Reset.
    FunctionLevel,
    /// From D3hot to D0.
    PowerState,
    /// Secondary Bus Reset of this bridge.
    Bus(Bdf),
    /// None: the function is handed on as it is.
    None,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FunctionLevel => f.write_str("by Function Level Reset"),
            Self::PowerState => f.write_str("by its power states"),
            Self::Bus(bridge) => write!(f, "with its bus, by {bridge}"),
            Self::None => f.write_str("in no way: it is handed on as it is"),
        }
    }
}

/// How `function` is reset, of `all` in the machine, for a guest that has the functions `owned`.
pub fn way(space: &impl ConfigSpace, all: &[Function], function: &Function, owned: &[Bdf]) -> Way {
    match method(space, function) {
        Some(Method::FunctionLevel { .. }) => Way::FunctionLevel,
        Some(Method::PowerState(_)) => Way::PowerState,
        None => bus_of(all, function.bdf, owned).map_or(Way::None, |(bridge, _)| Way::Bus(bridge)),
    }
}
