//! Reasons for a restore, as the caller gives them: they tell the guest why, and decide nothing.

/// Why the page is updated, where a guest has to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Intent {
    /// The VM moved to another host, and exists once.
    LiveMigration,
    /// The VMM was replaced under a VM that stayed.
    LiveUpdate,
    /// The VM goes on from a saved state, and may have gone on from it before.
    Snapshot,
    /// The VM is one of several from one state.
    Clone,
}

impl Intent {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("live-migration", Self::LiveMigration),
        ("live-update", Self::LiveUpdate),
        ("snapshot", Self::Snapshot),
        ("clone", Self::Clone),
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LiveMigration => "live-migration",
            Self::LiveUpdate => "live-update",
            Self::Snapshot => "snapshot",
            Self::Clone => "clone",
        }
    }

    /// Whether the guest is a copy, which changes `vm_generation_counter`: UAPI.13, "VM Generation Count".
    #[must_use]
    pub const fn makes_a_copy(self) -> bool {
        matches!(self, Self::Snapshot | Self::Clone)
    }
}
