//! guestclock-linux
