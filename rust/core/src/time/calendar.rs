//! UTC months, at whose ends leap seconds come (ITU-R TF.460).

use crate::time::frequency::NS_PER_S;

/// Months since January of year 0 of the proleptic Gregorian calendar, in UTC.
fn month(utc_ns: i128) -> i128 {
    let days = utc_ns.div_euclid(86_400 * i128::from(NS_PER_S));
    // Days from 1 March of year 0, in eras of 400 years: February, with its leap day, ends a year.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    (era * 400 + year) * 12 + month
}

/// Returns whether a UTC month ends between two instants, given in nanoseconds since 1970 by UTC.
pub(crate) fn month_ends_between(from_ns: i128, to_ns: i128) -> bool {
    month(from_ns) != month(to_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_change_where_the_calendar_says() {
        // First days of months, as `date -u -d ... +%s` gives them.
        for first_s in [
            0,
            -86_400 * 31,  // December 1969
            951_868_800,   // March 2000, after a leap day
            1_483_228_800, // January 2017, after the last leap second
            1_746_057_600, // May 2025
            4_107_542_400, // March 2100, without a leap day
            1_709_251_200, // March 2024
            1_706_745_600, // February 2024
        ] {
            let first = first_s * i128::from(NS_PER_S);
            assert!(month_ends_between(first - 1, first), "{first_s}");
            assert!(!month_ends_between(first, first + 27 * 86_400 * i128::from(NS_PER_S)), "{first_s}");
            assert_eq!(month(first), month(first - 1) + 1, "{first_s}");
        }
        assert_eq!(month(1_746_057_600_000_000_000) - month(0), 55 * 12 + 4);
    }
}
