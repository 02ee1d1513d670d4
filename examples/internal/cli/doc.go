// Package cli is what the example programs share: flags with a help text that
// teaches, logs, signals, files that are followed, and an admin page.
//
// A program is a main of one line and a run that tests can call:
//
//	func main() { cli.Main("proxy-server", run) }
//
//	func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
//		flags := cli.NewFlags("proxy-server", help)
//		flags.Text(&addr, "admin-listen", "ADDR", "address of the admin pages")
//		if err := flags.Parse(args, stdout); err != nil {
//			return err
//		}
//		...
//		g := cli.NewGroup()
//		g.Go("door", func() error { return server.Serve(listener) })
//		g.Go("certificate", func() error { return pair.Run(g.Context()) })
//		return g.Run(ctx, server.Shutdown)
//	}
//
// # How a program ends
//
//	SIGTERM, SIGINT ──► ctx ends ──► shutdown drains ──► Group's context ends ──► run returns
//	a second one ──────────────────► shutdown's context ends: what is open is reset
//
// Exit codes are 0 after a drain in which nothing was cut off and after -h, 2
// for bad flags, and 1 for everything else.
//
// # What it does not do
//
// It understands no configuration file, though it follows one (see [File]), and
// no environment variable, and it is not part of the library: the module's own
// programs use it, and nobody else can.
package cli
