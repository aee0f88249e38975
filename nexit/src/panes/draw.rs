//! The split screen: guests above, the live table and the hypervisor below, a line of state at the bottom.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};
use tui_term::widget::{Cursor, PseudoTerminal};

use super::keys::KEYS;
use super::known::Focus;
use super::screens::{Pane, Screens};

/// One for each guest, again and again; readable on dark and on light.
pub(super) const COLOURS: [Color; 6] =
    [Color::Cyan, Color::Green, Color::Yellow, Color::Magenta, Color::Blue, Color::Red];

/// Guests side by side.
const PER_ROW: usize = 3;
/// Rows of the hypervisor's pane, if there are enough.
const LOG_ROWS: u16 = 10;
/// A pane's frame, above and below.
const FRAME_ROWS: u16 = 2;

/// What is shown beside the panes.
pub(super) struct Status<'a> {
    /// The line, or what is the matter with it.
    pub(super) line: &'a str,
    pub(super) connected: bool,
    /// The focused pane alone.
    pub(super) zoomed: bool,
}

/// A guest's colour.
pub(super) fn colour(guest: usize) -> Color {
    COLOURS.get(guest % COLOURS.len()).copied().unwrap_or(Color::Reset)
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, panes: &mut Screens, status: &Status<'_>) {
    let [body, bottom] =
        Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    let focus = panes.known.focus;
    if status.zoomed {
        match focus {
            Focus::Guest(guest) if guest < panes.known.guests.len() => {
                draw_guest(frame, body, panes, guest);
            }
            Focus::Guest(_) | Focus::Monitor => draw_hypervisor(frame, body, panes),
        }
    } else {
        draw_all(frame, body, panes);
    }
    draw_status(frame, bottom, panes, status);
}

fn draw_all(frame: &mut Frame<'_>, body: Rect, panes: &mut Screens) {
    let count = panes.known.guests.len();
    let table_rows = match panes.known.table.len() {
        0 => 0,
        rows => {
            u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(FRAME_ROWS).min(body.height / 3)
        }
    };
    let log_rows = if count == 0 { body.height } else { LOG_ROWS.min(body.height / 3) };
    let [guests, table, log] = Layout::vertical([
        Constraint::Min(0),
        Constraint::Length(table_rows),
        Constraint::Length(log_rows),
    ])
    .areas(body);
    let rows = count.div_ceil(PER_ROW);
    for (row, area) in
        Layout::vertical(vec![Constraint::Fill(1); rows]).split(guests).iter().enumerate()
    {
        let first = row * PER_ROW;
        let here = PER_ROW.min(count - first);
        let columns = Layout::horizontal(vec![Constraint::Fill(1); here]).split(*area);
        for (guest, area) in (first..).zip(columns.iter()) {
            draw_guest(frame, *area, panes, guest);
        }
    }
    if table_rows > 0 {
        let lines = panes.known.table.iter().map(|row| Line::raw(row.as_str()));
        let block = Block::bordered().title(" exits, live ");
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), table);
    }
    draw_hypervisor(frame, log, panes);
}

fn draw_guest(frame: &mut Frame<'_>, area: Rect, panes: &mut Screens, guest: usize) {
    let Some(known) = panes.known.guests.get(guest) else { return };
    let mut title = format!(" {} {}", guest + 1, known.name);
    if known.state != "running" {
        title = format!("{title}: {}", known.state);
    }
    let focused = panes.known.focus == Focus::Guest(guest);
    draw_pane(frame, area, panes.guest(guest), title, colour(guest), focused);
}

fn draw_hypervisor(frame: &mut Frame<'_>, area: Rect, panes: &mut Screens) {
    let focused = panes.known.focus == Focus::Monitor;
    draw_pane(frame, area, &mut panes.hypervisor, " nexit".to_owned(), Color::Reset, focused);
}

fn draw_pane(
    frame: &mut Frame<'_>,
    area: Rect,
    pane: &mut Pane,
    title: String,
    colour: Color,
    focused: bool,
) {
    let title = match pane.back() {
        0 => title + " ",
        lines => format!("{title}: {lines} lines back "),
    };
    let style = Style::new().fg(colour);
    let strong = if focused { Modifier::BOLD | Modifier::REVERSED } else { Modifier::BOLD };
    let title = Span::styled(title, style.add_modifier(strong));
    let frame_style = if focused {
        style.add_modifier(Modifier::BOLD)
    } else {
        style.add_modifier(Modifier::DIM)
    };
    let block = Block::bordered().border_style(frame_style).title(title);
    let inner = block.inner(area);
    pane.resize(inner.height, inner.width);
    let cursor = Cursor::default().visibility(focused && pane.back() == 0);
    let screen = PseudoTerminal::new(pane.screen()).cursor(cursor).block(block);
    frame.render_widget(screen, area);
}

fn draw_status(frame: &mut Frame<'_>, area: Rect, panes: &Screens, status: &Status<'_>) {
    let typing = match panes.known.focus {
        Focus::Monitor => "monitor".to_owned(),
        Focus::Guest(guest) => {
            panes.known.guests.get(guest).map_or("-".to_owned(), |it| it.name.clone())
        }
    };
    let state = Style::new().fg(if status.connected { Color::Green } else { Color::Red });
    let line = Line::from(vec![
        Span::styled(format!(" {} ", status.line), state.add_modifier(Modifier::BOLD)),
        Span::raw(format!(" typing to: {typing}  ")),
        Span::styled(KEYS, Style::new().add_modifier(Modifier::DIM)),
    ]);
    frame.render_widget(Paragraph::new(line), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::panes::screens::tests::{BOOT, fed};

    const CONNECTED: Status<'_> = Status { line: "host:4444", connected: true, zoomed: false };

    fn drawn(panes: &mut Screens, status: &Status<'_>, columns: u16, rows: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, panes, status)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |row| (0..columns).map(|column| buffer[(column, row)].symbol()).collect();
        (0..rows).map(row).collect()
    }

    #[test]
    fn guests_stand_side_by_side_above_the_hypervisor() {
        let (mut panes, _) = fed(&(BOOT.to_owned() + "linux: # \r\nrt: hello\r\n"));
        let rows = drawn(&mut panes, &CONNECTED, 60, 24);
        assert!(rows[0].starts_with("┌ 1 linux ") && rows[0].contains("┌ 2 rt "), "{rows:#?}");
        assert!(rows[1].starts_with("│# ") && rows[1].contains("│hello"), "{rows:#?}");
        assert!(rows.iter().any(|row| row.starts_with("┌ nexit ")), "{rows:#?}");
        assert!(rows.iter().any(|row| row.contains("guest rt: entering")), "{rows:#?}");
        assert!(rows[23].starts_with(" host:4444  typing to: linux "), "{rows:#?}");
    }

    #[test]
    fn the_focused_pane_fills_the_screen_when_it_is_zoomed() {
        let (mut panes, _) =
            fed(&(BOOT.to_owned() + "\x1enexit: typing to guest 2, rt\r\nrt: hello\r\n"));
        let rows = drawn(&mut panes, &Status { zoomed: true, ..CONNECTED }, 60, 12);
        assert!(rows[0].starts_with("┌ 2 rt ─") && rows[10].starts_with('└'), "{rows:#?}");
        assert!(rows[1].starts_with("│hello"), "{rows:#?}");
    }

    #[test]
    fn the_live_table_has_a_pane_of_its_own_and_an_end_shows_in_the_title() {
        let table = "\x1enexit: guest  CPU  exits/s  most often, each second\r\n\
                     \x1enexit: linux    0     12.5  cpuid 12.5\r\n";
        let end = "\x1enexit: guest rt: stopped after 9 exits\r\n";
        let (mut panes, _) = fed(&(BOOT.to_owned() + table + end));
        let rows = drawn(&mut panes, &CONNECTED, 60, 30);
        assert!(rows.iter().any(|row| row.starts_with("┌ exits, live ")), "{rows:#?}");
        assert!(rows.iter().any(|row| row.starts_with("│linux    0     12.5")), "{rows:#?}");
        assert!(rows[0].contains(" 2 rt: stopped "), "{rows:#?}");
    }

    #[test]
    fn no_size_is_too_small_and_no_number_of_guests_too_large() {
        let guests: String = (0..20)
            .map(|guest| {
                format!("\x1enexit: guest g{guest}: nested table 0 x 1G, 1 x 2M, 0 x 4K\r\n")
            })
            .collect();
        let (mut panes, _) = fed(&guests);
        for (columns, rows) in [(1, 1), (2, 3), (10, 4), (200, 100)] {
            assert_eq!(drawn(&mut panes, &CONNECTED, columns, rows).len(), usize::from(rows));
        }
        assert!(drawn(&mut panes, &CONNECTED, 200, 100).iter().any(|row| row.contains(" 20 g19 ")));
    }
}
