//! Where assigned functions appear on the guest's only bus, bus 0.
//!
//! A function of the machine's bus 0 (of segment 0) keeps its device number; one of another bus (whose bridge the
//! guest does not see) or of device 0 (where the guest has its host bridge) gets the lowest free
//! one. Functions keep their function numbers, but the lowest of a device becomes function 0 where
//! that is not assigned: a guest looks for the others only behind a function 0.

use alloc::vec::Vec;

use arch::Bdf;

/// The guest's addresses of `functions`, in the same order.
///
/// # Errors
/// The first function for which no device number is left.
pub(super) fn place(functions: &[Bdf]) -> Result<Vec<Bdf>, Bdf> {
    let keeps_slot = |bdf: Bdf| (bdf.segment(), bdf.bus()) == (0, 0) && bdf.device() != 0;
    // Bit n: device number n is taken; 0 is the host bridge's.
    let mut taken = functions
        .iter()
        .filter(|bdf| keeps_slot(**bdf))
        .fold(1u32, |taken, bdf| taken | 1 << bdf.device());
    let mut places: Vec<Bdf> = Vec::with_capacity(functions.len());
    for &bdf in functions {
        let place = |it: Bdf| (it.segment(), it.requester_id() >> 3);
        let same_device = |other: Bdf| place(other) == place(bdf);
        let sibling = functions.iter().zip(&places).find(|(other, _)| same_device(**other));
        let slot = match sibling {
            Some((_, place)) => place.device(),
            None if keeps_slot(bdf) => bdf.device(),
            None if taken == u32::MAX => return Err(bdf),
            None => taken.trailing_ones() as u8,
        };
        taken |= 1 << slot;
        let lowest = functions.iter().filter(|other| same_device(**other)).min();
        let number = if lowest == Some(&bdf) { 0 } else { bdf.function() };
        places.push(Bdf::new(0, slot, number));
    }
    Ok(places)
}

/// The highest device number that none of `places` has, for a function that is not the machine's.
pub(super) fn free(places: impl Iterator<Item = Bdf> + Clone) -> Option<Bdf> {
    let free = (1..32).rev().find(|slot| places.clone().all(|place| place.device() != *slot));
    free.map(|slot| Bdf::new(0, slot, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(bus: u8, device: u8, function: u8) -> Bdf {
        Bdf::new(bus, device, function)
    }

    #[test]
    fn functions_of_bus_0_stay_where_they_are() {
        let functions = [at(0, 4, 0), at(0, 5, 0), at(0, 5, 3)];
        assert_eq!(place(&functions), Ok(functions.to_vec()));
    }

    #[test]
    fn the_others_take_free_slots_and_always_have_a_function_0() {
        let functions = [at(0, 1, 1), at(3, 0, 1), at(3, 0, 2), at(0, 0, 2), at(0, 2, 0)];
        let expected = [at(0, 1, 0), at(0, 3, 0), at(0, 3, 2), at(0, 4, 0), at(0, 2, 0)];
        assert_eq!(place(&functions), Ok(expected.to_vec()));
    }

    #[test]
    fn a_namesake_of_another_segment_is_another_device() {
        let functions = [at(0, 4, 0), at(0, 4, 1).in_segment(1)];
        assert_eq!(place(&functions), Ok(vec![at(0, 4, 0), at(0, 1, 0)]));
    }

    proptest! {
        #[test]
        fn places_are_distinct_on_bus_0_and_never_the_host_bridge(
            ids in proptest::collection::btree_set((0u16..0x900, 0u16..2), 0..60),
        ) {
            let function = |(id, segment)| Bdf::from_requester_id(id).in_segment(segment);
            let functions: Vec<_> = ids.into_iter().map(function).collect();
            if let Ok(mut places) = place(&functions) {
                prop_assert!(places.iter().all(|p| p.bus() == 0 && p.device() != 0));
                prop_assert!(places.iter().all(|p| places.contains(&at(0, p.device(), 0))));
                places.sort_unstable();
                places.dedup();
                prop_assert_eq!(places.len(), functions.len());
            }
        }
    }
}
