//! Intent of a restore, as the caller gives it: it tells the guest the reason, and decides nothing.

/// Reason for a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Intent {
    /// The VM moved to another host, and exists once.
    LiveMigration,
    /// The VMM was replaced under a VM that stayed.
    LiveUpdate,
    /// The VM goes on from a saved state, perhaps not for the first time.
    Snapshot,
    /// The VM is one of several that go on from one state.
    Clone,
}

impl Intent {
    /// All intents with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("live-migration", Self::LiveMigration),
        ("live-update", Self::LiveUpdate),
        ("snapshot", Self::Snapshot),
        ("clone", Self::Clone),
    ];

    /// Name of the intent.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LiveMigration => "live-migration",
            Self::LiveUpdate => "live-update",
            Self::Snapshot => "snapshot",
            Self::Clone => "clone",
        }
    }

    /// Returns whether the guest is a copy, which changes `vm_generation_counter` (UAPI.13, "VM Generation Count").
    #[must_use]
    pub const fn makes_a_copy(self) -> bool {
        matches!(self, Self::Snapshot | Self::Clone)
    }
}
