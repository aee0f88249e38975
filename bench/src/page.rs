//! The page: one HTML file with its pictures in it, for a reader who would rather look than read.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use nexit::failure::{OrFailed, Result};

use crate::chart::escaped;
use crate::model;
use crate::question::{Question, Technology};
use crate::results::{Figure, How, Results};

/// What the first picture shows.
const IN_INSTRUCTIONS: &str = "Counted instructions, not time: an emulator's time says nothing about hardware. Of the \
                               first CPU, to which most works are pinned; of both for streams, ipi and idle.";
const IN_TICKS: &str =
    "Ticks of the TSC, not instructions, of the CPUs that worked, less their idle time.";
const STYLE: &str = ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;\
                     margin:2rem auto;padding:0 1rem}svg{width:100%;max-width:36rem;display:block;margin:1rem 0}\
                     .charts{display:flex;flex-wrap:wrap;gap:0 2rem}.charts>*{flex:1 1 20rem}\
                     .table{overflow-x:auto}table{border-collapse:collapse;font-size:13px}\
                     td,th{border:1px solid #8884;padding:2px 8px;text-align:right}\
                     td:nth-child(-n+4),th{text-align:left}";

/// Writes the page to `path`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).or_failed("create", folder)?;
    }
    fs::write(path, html(results)).or_failed("write", path)
}

/// Writes each picture of the page into `folder`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn pictures(results: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).or_failed("create", folder)?;
    for (question, technology) in pairs() {
        if let Some(chart) = question.chart(results, technology) {
            let path = folder.join(format!("{}-{}.svg", question.file(), technology.file()));
            fs::write(&path, chart.svg()).or_failed("write", &path)?;
        }
    }
    Ok(())
}

fn pairs() -> impl Iterator<Item = (Question, Technology)> {
    Question::ALL.into_iter().flat_map(|q| Technology::ALL.map(|technology| (q, technology)))
}

fn html(results: &Results) -> String {
    let date = escaped(&results.date);
    let modified = if results.modified { " and changes" } else { "" };
    let revision = escaped(&results.revision);
    let why = if results.in_ticks() { IN_TICKS } else { IN_INSTRUCTIONS };
    let charts = pairs().filter_map(|(question, technology)| question.chart(results, technology));
    let charts: String = charts.map(|chart| chart.svg()).collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Nexit: benchmark</title>\
         <style>{STYLE}</style><h1>Nexit: benchmark</h1><p>{date}, revision {revision}{modified}.</p>\
         <p>{why} A bar that ends in \u{2026} is cut.</p><div class=\"charts\">{charts}</div>{}\
         <div class=\"table\">{}</div><h2>The machine</h2><div class=\"table\">{}</div>\
         <h2>All figures</h2><div class=\"table\">{}</div></html>\n",
        notes(results),
        model::html(results),
        machine(results),
        table(results)
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::Mode;
    use crate::results::{EXITS_PER_INTERRUPT, FIRST_CPU};

    fn results() -> Results {
        let figure = |work: &str, mode, figure: &str| Figure {
            work: work.to_owned(),
            mode,
            figure: figure.to_owned(),
            how: How::Counted,
            n: 3,
            min: 1.0,
            median: 2.0,
            max: 5.0,
        };
        let figures = vec![
            figure("nvme-qd1", Mode::Bare, FIRST_CPU),
            figure("nvme-qd1", Mode::Exiting, FIRST_CPU),
            figure("vt-x-wake", Mode::Exiting, EXITS_PER_INTERRUPT),
        ];
        Results { figures, ..Results::default() }
    }

    #[test]
    fn the_page_holds_its_pictures_and_every_figure_and_needs_no_other_file() {
        let html = html(&results());
        assert_eq!(html.matches("<svg").count(), 2);
        assert_eq!(html.matches("<tr><td>nvme-qd1").count(), 2);
        let foreign = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http") && !foreign.contains("src="), "self-contained");
    }

    #[test]
    fn a_page_is_written_where_its_folder_was_missing() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("bench/report.html");
        write(&results(), &page).unwrap();
        pictures(&results(), &folder.path().join("pictures")).unwrap();
        assert!(page.is_file());
        for name in ["instructions-amd-v.svg", "exits-per-interrupt-vt-x.svg"] {
            assert!(folder.path().join("pictures").join(name).is_file(), "{name}");
        }
    }
}
