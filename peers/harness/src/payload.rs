/// How many bytes of a payload tell one call from another.
const NUMBER_BYTES: usize = 8;

/// The payload of a call: its number in printable bytes, so that it is text as well, and filling.
pub fn payload(size: usize, number: u64) -> Vec<u8> {
    let mut bytes = vec![b'z'; size];
    bytes[..NUMBER_BYTES].copy_from_slice(&digits(number));
    bytes
}

/// Whether this is what was sent: its length and the number at its beginning.
///
/// # Errors
/// It is not.
pub fn check(reply: &[u8], size: usize, number: u64) -> Result<(), String> {
    if reply.len() == size && reply[..NUMBER_BYTES] == digits(number) {
        return Ok(());
    }
    Err(format!("call {number} of {size} bytes got a reply of {} bytes that is not its own", reply.len()))
}

fn digits(number: u64) -> [u8; NUMBER_BYTES] {
    std::array::from_fn(|place| b'0' + (number >> (6 * place) & 63) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_its_own_or_none() {
        for number in [0, 1, 63, 64, 1 << 40] {
            let sent = payload(32, number);
            assert!(std::str::from_utf8(&sent).is_ok());
            assert_eq!(check(&sent, 32, number), Ok(()));
            assert!(check(&sent, 32, number + 1).is_err());
            assert!(check(&sent[..31], 32, number).is_err());
        }
    }
}
