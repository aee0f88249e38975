//! The page: one HTML file with its plots in it, for a reader who would rather look than read.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use nexit::failure::{Failure, OrFailed, Result};
use plotters::prelude::{
    ChartBuilder, Color as _, IntoDrawingArea as _, PathElement, RGBColor, Rectangle, SVGBackend,
    SeriesLabelPosition, WHITE,
};
use plotters::style::BLACK;

use crate::mode::Mode;
use crate::model;
use crate::results::{EXITS_PER_INTERRUPT, Figure, How, Results};

/// In the names of the works of `tests/payload`: too small for a plot.
const MICRO: &str = "micro-";
/// In pixels.
const SIZE: (u32, u32) = (960, 420);
/// What a throughput is of.
const IN_INSTRUCTIONS: &str = "A CPU that needs fewer instructions for an operation does more of them. Of the \
                               first CPU, to which most works are pinned, of both for streams, ipi and idle. The \
                               emulator's own time says nothing of that, so it is not shown here.";
const IN_TICKS: &str = "Ticks of the TSC, not instructions: a CPU that is busy for fewer of them with an operation \
                        does more. Of the CPUs that worked on it, less their idle time.";
const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}\
                     table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;\
                     padding:2px 8px;text-align:right}td:nth-child(-n+4),th{text-align:left}";

/// Writes the page to `path`.
///
/// # Errors
/// The file cannot be written, or the library cannot draw.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    fs::write(path, html(results)?).or_failed("write", path)
}

fn html(results: &Results) -> Result<String> {
    let date = escaped(&results.date);
    let modified = if results.modified { " and changes" } else { "" };
    let revision = escaped(&results.revision);
    let unit = if results.in_ticks() {
        "ticks of the TSC, not instructions"
    } else {
        "instructions, counted"
    };
    let caption = format!("Throughput against the bare machine (bare / here; {unit})");
    let throughput = bars(results, &caption, throughput)?;
    let why = if results.in_ticks() { IN_TICKS } else { IN_INSTRUCTIONS };
    let exits = bars(results, "Exits for each interrupt (counted)", exits_per_interrupt)?;
    Ok(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Nexit: benchmark</title>\
         <style>{STYLE}</style><h1>Nexit: benchmark</h1><p>{date}, revision {revision}{modified}.</p>{}{}\
         <h2>Throughput</h2>\
         <p>{why} Higher is better; 1 is the bare machine. \
         The line on each bar is the spread from least to most.</p>\
         {throughput}<h2>Exits for each interrupt</h2><p>Lower is better; without a hypervisor there are \
         none.</p>{exits}{}<h2>All figures</h2>{}</html>\n",
        machine(results),
        notes(results),
        model::html(results),
        table(results)
    ))
}

/// Least, median and most.
type Spread = [f64; 3];

/// Instructions of the bare machine in proportion.
fn throughput(results: &Results, work: &str, mode: Mode) -> Option<Spread> {
    let figure = results.principal(work, mode);
    let bare = results.median(work, Mode::Bare, figure)?;
    let Figure { min, median, max, .. } = results.find(work, mode, figure)?;
    (*min > 0.0).then(|| [max, median, min].map(|here| bare / here))
}

fn exits_per_interrupt(results: &Results, work: &str, mode: Mode) -> Option<Spread> {
    let Figure { min, median, max, .. } = results.find(work, mode, EXITS_PER_INTERRUPT)?;
    Some([*min, *median, *max])
}

const fn color(mode: Mode) -> RGBColor {
    match mode {
        Mode::Bare => RGBColor(120, 120, 120),
        Mode::Exitless => RGBColor(0, 130, 80),
        Mode::Exiting => RGBColor(220, 140, 0),
        Mode::Posted => RGBColor(150, 60, 160),
        Mode::Kvm => RGBColor(60, 90, 200),
    }
}

/// A group of bars for each work, a bar for each mode; SVG text.
fn bars(
    results: &Results,
    caption: &str,
    value: impl Fn(&Results, &str, Mode) -> Option<Spread>,
) -> Result<String> {
    let mut svg = String::new();
    let drawn = draw(&mut svg, results, caption, value);
    drawn.map_err(|error| Failure::Failed(format!("cannot draw: {error}")))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    results: &Results,
    caption: &str,
    value: impl Fn(&Results, &str, Mode) -> Option<Spread>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut works = results.works();
    works.retain(|work| !work.contains(MICRO));
    let modes = results.modes();
    let all = works.iter().flat_map(|work| modes.iter().map(move |mode| (work, mode)));
    let all = all.filter_map(|(work, mode)| value(results, work, *mode));
    let top = 1.1 * all.map(|[_, _, most]| most).fold(1.0, f64::max);
    let name = |x: &f64| {
        let near = (x - x.round()).abs() < 0.01;
        let work = near.then(|| works.get(x.round() as usize)).flatten();
        work.map_or_else(String::new, |work| (*work).to_owned())
    };
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(44)
        .build_cartesian_2d(-0.5..works.len() as f64 - 0.5, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * works.len() + 1)
        .x_label_formatter(&name)
        .draw()?;
    let width = 0.8 / modes.len().max(1) as f64;
    for (place, mode) in modes.iter().enumerate() {
        let bar = |(index, work): (usize, &&str)| {
            let [_, height, _] = value(results, work, *mode)?;
            let left = index as f64 - 0.4 + place as f64 * width;
            let corners = [(left, 0.0), (left + 0.9 * width, height)];
            Some(Rectangle::new(corners, color(*mode).filled()))
        };
        let spread = |(index, work): (usize, &&str)| {
            let [least, _, most] = value(results, work, *mode)?;
            let middle = index as f64 - 0.4 + (place as f64 + 0.45) * width;
            Some(PathElement::new(vec![(middle, least), (middle, most)], BLACK))
        };
        let color = color(*mode);
        chart
            .draw_series(works.iter().enumerate().filter_map(bar))?
            .label(mode.name())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
        chart.draw_series(works.iter().enumerate().filter_map(spread))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

fn machine(results: &Results) -> String {
    let rows = results.machine.iter();
    let rows = rows.map(|(key, value)| {
        format!("<tr><th>{}</th><td>{}</td></tr>", escaped(key), escaped(value))
    });
    format!("<table>{}</table>", rows.collect::<String>())
}

fn notes(results: &Results) -> String {
    results.notes.iter().map(|note| format!("<p>Note: {}</p>", escaped(note))).collect()
}

fn table(results: &Results) -> String {
    let mut text =
        "<table><tr><th>Work<th>Where<th>Figure<th>How<th>n<th>Least<th>Median<th>Most</tr>"
            .to_owned();
    for figure in &results.figures {
        let Figure { work, mode, figure, how, n, min, median, max } = figure;
        let how = match how {
            How::Counted => "counted",
            How::Tsc => "by the TSC, in its ticks",
            How::Reported => "guest's kernel",
            How::Timed => "timed (in an emulator it says little)",
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<tr><td>{}<td>{}<td>{}<td>{how}<td>{n}<td>{min:.3}<td>{median:.3}<td>{max:.3}</tr>",
            escaped(work),
            mode.name(),
            escaped(figure)
        );
    }
    text + "</table>"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::FIRST_CPU;

    #[test]
    fn the_page_holds_its_plots_and_every_figure() {
        let figure = |mode, figure: &str, median| Figure {
            work: "nvme-qd1".to_owned(),
            mode,
            figure: figure.to_owned(),
            how: How::Counted,
            n: 3,
            min: 1.0,
            median,
            max: 5.0,
        };
        let figures = vec![
            figure(Mode::Bare, FIRST_CPU, 2.0),
            figure(Mode::Exiting, FIRST_CPU, 4.0),
            figure(Mode::Exiting, EXITS_PER_INTERRUPT, 2.0),
        ];
        let results = Results { figures, ..Results::default() };
        assert_eq!(throughput(&results, "nvme-qd1", Mode::Exiting), Some([0.4, 0.5, 2.0]));
        let html = html(&results).unwrap();
        assert_eq!(html.matches("<svg").count(), 2);
        assert_eq!(html.matches("<tr><td>nvme-qd1").count(), 3);
        assert!(!html.contains("http://") || html.contains("www.w3.org"), "self-contained");
    }
}
