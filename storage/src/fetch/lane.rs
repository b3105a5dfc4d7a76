//! Why bytes are fetched, in the order in which reasons yield to each other.

/// The reason for fetching a chunk. A more urgent one always goes first; see [`crate::fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A reader waits for it.
    Demand,
    /// A sequential reader will come to it.
    Readahead,
    /// An earlier start of the image demanded it, or its files tell that this one is going to.
    Profile,
    /// It lies beside a chunk that was demanded lately.
    Neighbour,
    /// Everything is wanted on this host.
    Fill,
}

impl Lane {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// All of them, the most urgent first.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Demand,
        Self::Readahead,
        Self::Profile,
        Self::Neighbour,
        Self::Fill,
    ];

    /// The name in metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Readahead => "readahead",
            Self::Profile => "profile",
            Self::Neighbour => "neighbour",
            Self::Fill => "fill",
        }
    }

    /// Its position in arrays with one place per lane.
    pub fn at(self) -> usize {
        self as usize
    }
}
