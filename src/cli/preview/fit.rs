//! How large an image can be in the terminal.

use std::io::stdout;

/// A terminal's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of the whole terminal.
    pub columns: u16,
    /// Of the whole terminal.
    pub rows: u16,
    /// Width and height of one cell, in pixels.
    pub cell: (u16, u16),
}

/// Where the terminal does not tell: twice as high as wide, as half blocks need it.
const CELL: (u16, u16) = (8, 16);

impl Room {
    /// As the terminal behind standard output tells it, and else what terminals have had for fifty years.
    pub fn of_terminal() -> Self {
        let Ok(size) = rustix::termios::tcgetwinsize(stdout()) else {
            return Self { columns: 80, rows: 24, cell: CELL };
        };
        Self::of_sizes((size.ws_col, size.ws_row), (size.ws_xpixel, size.ws_ypixel))
    }

    fn of_sizes((columns, rows): (u16, u16), (width, height): (u16, u16)) -> Self {
        let (columns, rows) = if columns == 0 || rows == 0 { (80, 24) } else { (columns, rows) };
        let cell = (width / columns, height / rows);
        Self { columns, rows, cell: if cell.0 == 0 || cell.1 == 0 { CELL } else { cell } }
    }

    /// Columns and rows of an image: no wider than the terminal, no higher than half of it, never larger than it is.
    pub fn fit(&self, width: u32, height: u32) -> (u16, u16) {
        let (width, height) = (f64::from(width.max(1)), f64::from(height.max(1)));
        let (most_wide, most_high) =
            self.pixels(self.columns.saturating_sub(1).max(1), (self.rows / 2).max(1));
        let scale = (f64::from(most_wide) / width).min(f64::from(most_high) / height).min(1.0);
        let cells = |pixels: f64, cell: u16| ((pixels * scale / f64::from(cell)).round() as u16).max(1);
        (cells(width, self.cell.0), cells(height, self.cell.1))
    }

    /// Width and height of so many cells, in pixels.
    pub fn pixels(&self, columns: u16, rows: u16) -> (u32, u32) {
        (u32::from(columns) * u32::from(self.cell.0), u32::from(rows) * u32::from(self.cell.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { columns: 80, rows: 24, cell: (8, 16) };

    #[test]
    fn an_image_takes_half_of_the_height_and_keeps_its_shape() {
        assert_eq!(ROOM.fit(1024, 1024), (24, 12));
        assert_eq!(ROOM.fit(1792, 1024), (42, 12));
        assert_eq!(ROOM.fit(1024, 1792), (14, 12));
    }

    #[test]
    fn a_wide_image_takes_the_width() {
        assert_eq!(ROOM.fit(10_000, 1000), (79, 4));
    }

    #[test]
    fn a_small_image_does_not_grow_and_is_never_nothing() {
        assert_eq!(ROOM.fit(80, 32), (10, 2));
        assert_eq!(ROOM.fit(1, 1), (1, 1));
        assert_eq!(Room { columns: 1, rows: 1, cell: (8, 16) }.fit(1024, 1024), (1, 1));
    }

    #[test]
    fn a_terminal_that_does_not_tell_is_an_ordinary_one() {
        assert_eq!(Room::of_sizes((0, 0), (0, 0)), ROOM);
        assert_eq!(Room::of_sizes((100, 50), (0, 0)).cell, (8, 16));
        assert_eq!(Room::of_sizes((100, 50), (1000, 1000)).cell, (10, 20));
    }
}
