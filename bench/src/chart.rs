//! A picture of one question: horizontal bars, each with its value written on it. SVG text. Pure.
//!
//! The picture is narrow, so that a phone shows it in readable letters, and has its own background in both colour
//! schemes, so that it can stand in any page.

use std::fmt::Write as _;

use crate::mode::Mode;

const WIDTH: f64 = 480.0;
const MARGIN: f64 = 14.0;
/// Where bars begin: the modes' names stand before them.
const LEFT: f64 = 84.0;
/// What is kept free for the value behind the longest bar.
const VALUE: f64 = 70.0;
const BAR: f64 = 16.0;
const BETWEEN_BARS: f64 = 3.0;
const HEADING: f64 = 22.0;
const BETWEEN_GROUPS: f64 = 8.0;

/// Colours as the page and the pictures in the README have them: light, then dark.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:15px}\
    .value{stroke:#fff;stroke-width:3px;paint-order:stroke}.soft{fill:#59636e}.paper{fill:#fff}.line{stroke:#8c959f;stroke-dasharray:3 3}\
    .bare{fill:#8c959f}.exitless{fill:#1a7f37}.exiting{fill:#bf8700}.posted{fill:#8250df}.kvm{fill:#0969da}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.value{stroke:#0d1117}.soft{fill:#9198a1}.paper{fill:#0d1117}\
    .line{stroke:#6e7681}.bare{fill:#6e7681}.exitless{fill:#3fb950}.exiting{fill:#d29922}\
    .posted{fill:#a371f7}.kvm{fill:#58a6ff}}";

/// One bar.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Bar {
    /// Where it was measured: the name before it, and its colour.
    pub(crate) mode: Mode,
    /// Its length.
    pub(crate) value: f64,
    /// What is written on it.
    pub(crate) text: String,
}

/// The bars of one work.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Group {
    /// The work.
    pub(crate) name: String,
    /// Its bars; at least one.
    pub(crate) bars: Vec<Bar>,
}

/// The picture.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Chart {
    /// The question.
    pub(crate) title: String,
    /// The machine, and which way is better.
    pub(crate) subtitle: String,
    /// The works that have a value.
    pub(crate) groups: Vec<Group>,
    /// A value with a line through all bars, such as the bare machine's.
    pub(crate) mark: Option<f64>,
    /// A longer bar is cut there: its value still stands on it.
    pub(crate) longest: f64,
}

impl Chart {
    /// The picture's text.
    pub(crate) fn svg(&self) -> String {
        let rows = |group: &Group| group.bars.len() as f64 * (BAR + BETWEEN_BARS);
        let groups = self.groups.iter().map(|group| HEADING + rows(group) + BETWEEN_GROUPS);
        let top = MARGIN + 2.0 * HEADING;
        let height = top + groups.sum::<f64>() + MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\
             <title>{title}</title><style>{STYLE}</style>\
             <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\
             <text class=\"title\" x=\"{MARGIN}\" y=\"{y}\">{title}</text>\
             <text class=\"soft\" x=\"{MARGIN}\" y=\"{below}\">{subtitle}</text>\n",
            title = escaped(&self.title),
            subtitle = escaped(&self.subtitle),
            y = MARGIN + 13.0,
            below = MARGIN + 33.0,
        );
        if let Some(mark) = self.mark {
            let x = LEFT + self.length(mark);
            let end = height - MARGIN;
            // Writing to a String cannot fail.
            let _ = writeln!(svg, "<path class=\"line\" d=\"M{x:.1} {top}V{end}\"/>");
        }
        let mut y = top;
        for group in &self.groups {
            let baseline = y + 15.0;
            let name = escaped(&group.name);
            let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{baseline}\">{name}</text>");
            y += HEADING;
            for bar in &group.bars {
                self.bar(&mut svg, bar, y);
                y += BAR + BETWEEN_BARS;
            }
            y += BETWEEN_GROUPS;
        }
        svg + "</svg>\n"
    }

    fn bar(&self, svg: &mut String, bar: &Bar, y: f64) {
        let (mode, value) = (bar.mode.name(), escaped(&bar.text));
        // Nothing is a line that can be seen, too.
        let length = self.length(bar.value).max(1.5);
        let (baseline, end) = (y + 13.0, LEFT + length + 5.0);
        let cut = if bar.value > self.longest { " \u{2026}" } else { "" };
        let _ = writeln!(
            svg,
            "<text class=\"soft\" x=\"{name}\" y=\"{baseline}\" text-anchor=\"end\">{mode}</text>\
             <rect class=\"{mode}\" x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\"/>\
             <text class=\"value\" x=\"{end:.1}\" y=\"{baseline}\">{value}{cut}</text>",
            name = LEFT - 6.0,
        );
    }

    fn length(&self, value: f64) -> f64 {
        let values = self.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value);
        let longest = values.chain(self.mark).fold(0.0, f64::max).min(self.longest);
        if longest > 0.0 { value.min(longest) / longest * (WIDTH - LEFT - VALUE) } else { 0.0 }
    }
}

/// For HTML and SVG.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: &[f64]) -> Chart {
        let bar = |value: &f64| Bar { mode: Mode::Kvm, value: *value, text: format!("{value:.2}") };
        let bars = values.iter().map(bar).collect();
        Chart {
            title: "Exits & <more>".to_owned(),
            subtitle: String::new(),
            groups: vec![Group { name: "reads".to_owned(), bars }],
            mark: Some(1.0),
            longest: 6.0,
        }
    }

    fn widths(svg: &str) -> Vec<f64> {
        let bars = svg.split("<rect class=\"kvm\"").skip(1);
        let width = |bar: &str| bar.split_once("width=\"")?.1.split_once('"')?.0.parse().ok();
        bars.filter_map(width).collect()
    }

    #[test]
    fn every_bar_has_its_value_beside_it_within_the_picture() {
        let svg = chart(&[0.0, 3.0, 123.8]).svg();
        for text in [">0.00<", ">3.00<", ">123.80 \u{2026}<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        let widths = widths(&svg);
        assert_eq!(widths.len(), 3);
        assert!(widths.iter().all(|width| LEFT + width + VALUE <= WIDTH), "{widths:?}");
    }

    #[test]
    fn lengths_are_in_proportion_and_one_giant_does_not_make_the_others_dots() {
        let [one, three, cut] = widths(&chart(&[1.0, 3.0, 123.8]).svg())[..] else {
            panic!("three bars")
        };
        assert!(
            (three - 3.0 * one).abs() < 0.3 && (cut - 6.0 * one).abs() < 0.5,
            "{one} {three} {cut}"
        );
    }

    #[test]
    fn text_cannot_become_markup() {
        let svg = chart(&[1.0]).svg();
        assert!(svg.contains("Exits &amp; &lt;more&gt;") && !svg.contains("<more>"));
    }
}
