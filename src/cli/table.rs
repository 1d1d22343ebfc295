//! Tables and amounts for a person.

use std::io::{self, Write};

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    headings: Vec<Heading>,
    rows: Vec<Vec<String>>,
}

/// A column's heading, and where its cells stand.
#[derive(Clone, Copy, Debug)]
pub enum Heading {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Heading {
    /// What it says.
    pub fn text(self) -> &'static str {
        match self {
            Self::Left(text) | Self::Right(text) => text,
        }
    }
}

impl Table {
    /// An empty one.
    pub fn new(headings: impl Into<Vec<Heading>>) -> Self {
        Self { headings: headings.into(), rows: Vec::new() }
    }

    /// One of texts only.
    pub fn of_texts(headings: &[&'static str]) -> Self {
        Self::new(headings.iter().map(|text| Heading::Left(text)).collect::<Vec<_>>())
    }

    /// Adds a row with a cell for every heading.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| plain(cell)).collect());
    }

    /// Of all columns.
    pub fn headings(&self) -> &[Heading] {
        &self.headings
    }

    /// A cell for every heading in each.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Prints it, without blanks at the ends of lines.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let headings: Vec<String> = self.headings.iter().map(|heading| heading.text().to_owned()).collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let width = |i: usize| {
            lines().filter_map(|cells| cells.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        for cells in lines() {
            let padded =
                cells.iter().zip(&self.headings).zip(&widths).map(|((cell, heading), width)| match heading {
                    Heading::Left(_) => format!("{cell:<width$}"),
                    Heading::Right(_) => format!("{cell:>width$}"),
                });
            writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// An amount that is known, or not, or only in part.
pub fn usd(known: Option<f64>, is_part: bool) -> String {
    match (known, is_part) {
        (None, _) => "unknown".to_owned(),
        (Some(known), true) if known <= 0.0 => "unknown".to_owned(),
        (Some(known), true) => format!("${known:.4} + unknown"),
        (Some(known), false) => format!("${known:.4}"),
    }
}

/// A text on one line that moves no cursor, whoever wrote it.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(table: &Table) -> String {
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([Heading::Left("NAME"), Heading::Right("COST"), Heading::Left("NOTE")]);
        table.row(["dall-e-3".into(), "$0.0400".into(), String::new()]);
        table.row(["é".into(), "$12.0000".into(), "x".into()]);
        assert_eq!(printed(&table), "NAME          COST  NOTE\ndall-e-3   $0.0400\né         $12.0000  x\n");
    }

    #[test]
    fn a_table_without_rows_has_its_headings() {
        assert_eq!(printed(&Table::of_texts(&["SLUG", "NAME"])), "SLUG  NAME\n");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut table = Table::of_texts(&["NAME"]);
        table.row(["a\u{1b}[2Jb\nc".into()]);
        assert_eq!(printed(&table), "NAME\na [2Jb c\n");
    }

    #[test]
    fn an_unknown_part_is_said() {
        assert_eq!(usd(Some(0.04), false), "$0.0400");
        assert_eq!(usd(Some(0.0), false), "$0.0000");
        assert_eq!(usd(Some(0.04), true), "$0.0400 + unknown");
        assert_eq!(usd(Some(0.0), true), "unknown");
        assert_eq!(usd(None, false), "unknown");
    }
}
