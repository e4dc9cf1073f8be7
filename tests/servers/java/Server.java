import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import java.net.InetSocketAddress;
import java.util.List;

/**
 * Serves an empty database in memory on a free loopback port, until standard input ends.
 *
 * <p>Standard input is a pipe from the process that started the server, so the server ends with that
 * process, however that process ends. The port is the one line on standard output.
 */
public class Server {
    /** The version to tell: with the library's default of 3.6, PyMongo calls the server too old. */
    private static final MongoVersion VERSION =
            new MongoVersion() {
                @Override
                public List<Integer> getVersionArray() {
                    return List.of(5, 0, 0);
                }

                @Override
                public int getWireVersion() {
                    return 13;
                }
            };

    public static void main(String[] arguments) throws Exception {
        MongoServer server = new MongoServer(new MemoryBackend().version(VERSION));
        server.bind(new InetSocketAddress("127.0.0.1", 0));
        System.out.println(server.getLocalAddress().getPort());
        while (System.in.read() != -1) {}
        server.shutdownNow();
    }
}
