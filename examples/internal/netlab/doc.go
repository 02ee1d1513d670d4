// Package netlab makes several hosts of one machine: network namespaces with
// cables and a router between them, in which programs run and whose paths can be
// cut. The example programs and their tests use it.
//
//	lab, err := netlab.New()
//	defer lab.Close()
//	server, _ := lab.Host("server")
//	client, _ := lab.Host("client")
//	err = lab.Internet(server, client) // a router between them
//	cmd := exec.Command("server-program")
//	err = server.Start(cmd)
//	err = client.Do(func() error { c, err := net.Dial("tcp", server.Addr.String()+":443"); … })
//	err = lab.Cut(client, server)      // both ways, and no host is told
//
// It needs linux and root. The namespaces have no name in the file system: they
// are gone with the process that made them, also after kill -9, and the programs
// that it started with them.
//
// # What it does not do
//
// It gives a host no file system and no processes of its own: programs see the
// machine's files, and kill what they may kill.
package netlab
