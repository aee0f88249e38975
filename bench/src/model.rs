//! Estimated cycles on hardware: `docs/cost-model.md` in code. Derived, never measured here.

use crate::results::{EXITS, HYPERVISOR, Results};

/// A CPU generation and what a world switch, there and back, costs on it in cycles. The sources stand in
/// `docs/cost-model.md`.
pub(crate) const GENERATIONS: [(&str, f64); 2] =
    [("Nehalem (VT-x, 2009)", 2000.0), ("EPYC (AMD-V, 2020)", 1360.0)];

/// Cycles of the hypervisor for an operation: each world switch as published, each instruction of the
/// hypervisor one cycle.
pub(crate) fn cycles(world_switch: f64, exits: f64, instructions: f64) -> f64 {
    exits * world_switch + instructions
}

/// The model's table.
pub(crate) fn html(results: &Results) -> String {
    let heads: String = GENERATIONS.iter().map(|(name, _)| format!("<th>{name}")).collect();
    let mut rows = String::new();
    for work in results.works() {
        for mode in results.modes() {
            let median = |figure| results.median(work, mode, figure);
            let (Some(exits), Some(instructions)) = (median(EXITS), median(HYPERVISOR)) else {
                continue;
            };
            let cells = GENERATIONS
                .iter()
                .map(|(_, switch)| format!("<td>{:.0}", cycles(*switch, exits, instructions)));
            let cells: String = cells.collect();
            rows += &format!("<tr><td>{work}<td>{}{cells}</tr>", mode.name());
        }
    }
    // Where the TSC counts there is nothing to derive.
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>Derived: cycles of the hypervisor for an operation on hardware</h2><p>Not measured: counted \
         exits and instructions, put into the model of docs/cost-model.md.</p>\
         <table><tr><th>Work<th>Where{heads}</tr>{rows}</table>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_exit_costs_nothing_on_any_cpu() {
        for (_, switch) in GENERATIONS {
            assert!(cycles(switch, 0.0, 0.0) < f64::EPSILON);
            assert!(cycles(switch, 2.0, 300.0) > 2.0 * switch);
        }
    }
}
