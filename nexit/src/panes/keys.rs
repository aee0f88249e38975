//! Keys that are for this program; all others are for the machine.

/// Ctrl-A, which opens an order.
const ESCAPE: u8 = 0x01;

/// What a key means here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Leave; the machine goes on.
    Leave,
    /// Show the focused pane alone, or all again.
    Zoom,
    /// Half a page back in the focused pane.
    Back,
    /// Half a page forward.
    Forward,
    /// Bytes for the machine.
    Send(Vec<u8>),
}

/// What the keys are, for who asks.
pub(super) const KEYS: &str = "Ctrl-A: 1-8 guest  m monitor  t exits  z zoom  u/d scroll  x leave";

/// Looks for orders. Ctrl-A waits here for the key that follows it.
#[derive(Debug, Default)]
pub(super) struct Keys {
    escaped: bool,
}

impl Keys {
    /// What was typed, in its order.
    pub(super) fn feed(&mut self, typed: &[u8]) -> Vec<Order> {
        let mut orders = Vec::new();
        for byte in typed {
            let order = if std::mem::take(&mut self.escaped) {
                match byte {
                    b'x' => Order::Leave,
                    b'z' => Order::Zoom,
                    b'u' => Order::Back,
                    b'd' => Order::Forward,
                    _ => Order::Send(vec![ESCAPE, *byte]),
                }
            } else if *byte == ESCAPE {
                self.escaped = true;
                continue;
            } else {
                Order::Send(vec![*byte])
            };
            match (orders.last_mut(), order) {
                (Some(Order::Send(before)), Order::Send(bytes)) => before.extend(bytes),
                (_, order) => orders.push(order),
            }
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_programs_keys_are_kept_from_the_machine() {
        let mut keys = Keys::default();
        let orders = keys.feed(b"ls\x01zx\x01u\x01d\x011\x01\x01x\x01");
        let send = |bytes: &[u8]| Order::Send(bytes.to_vec());
        let expected = [
            send(b"ls"),
            Order::Zoom,
            send(b"x"),
            Order::Back,
            Order::Forward,
            send(b"\x011\x01\x01x"),
        ];
        assert_eq!(orders, expected);
        assert_eq!(keys.feed(b"x"), [Order::Leave], "an order that comes in two pieces");
    }
}
